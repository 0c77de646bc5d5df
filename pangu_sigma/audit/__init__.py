"""`pangu-sigma audit`: what the compiled graphs of a job really exchange, beside what the planner predicts."""
