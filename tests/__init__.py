"""The tests; their own helpers are imported as tests.NAME."""
