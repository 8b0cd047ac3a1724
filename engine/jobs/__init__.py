"""Jobs: the state machine, the copy path, and the jobs themselves."""
