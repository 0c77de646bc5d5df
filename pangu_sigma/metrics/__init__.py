"""The numbers of a run: what each metric means, and over which steps it is taken. Nothing here needs MindSpore."""
