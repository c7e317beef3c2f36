"""Performance: timing, floors, rivals, the bench, its result files, and the report and tables generated from them."""
