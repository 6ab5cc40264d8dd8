"""Strict scoring: the episode runner, statistics, suites, diagnoses and the pages that show them."""
