"""The tests, in rooms as the package is."""

import gc

# Thousands of tests and all of torch stay until the end; to go through them for garbage again and again would take a
# tenth of the suite's time. They are made without looking for any, and left alone once all are there (conftest.py).
gc.disable()
