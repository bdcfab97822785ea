"""Reports: tables, charts and pages of a run."""
