"""What runners share: settings, trainings, methods, and what is said of them at the end."""
