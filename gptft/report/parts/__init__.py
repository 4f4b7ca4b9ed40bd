"""The parts of a run's page: functions of its files, which give None where these hold nothing of it."""
