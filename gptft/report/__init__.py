"""What people look at: the token viewer and plots."""
