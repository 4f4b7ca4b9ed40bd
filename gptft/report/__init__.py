"""What people look at: a run's page, the token viewer, plots."""
