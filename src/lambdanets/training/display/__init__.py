"""Progress, summaries and plots."""
