"""Files of all shapes -> records -> examples."""
