"""Measurements, never tests: `python -m bench.NAME [--quick] [--json FILE]`. Kept results lie in ``bench/results``."""
