"""`pangu-sigma doctor`: what would keep a job from running, found before it starts."""
