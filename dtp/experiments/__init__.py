"""Many runs: sweeps, searches, reports, and studies of the papers' theorems."""
