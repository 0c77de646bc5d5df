"""What scripts/check_faults.py does to jobs and files, a module for each kind of fault."""
