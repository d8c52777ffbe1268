"""Many runs: sweeps, searches, reports, and the theorems of the papers."""
