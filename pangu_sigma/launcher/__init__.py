"""`pangu-sigma launch`: starts a job's ranks, on this machine or on several, and ends with them."""
