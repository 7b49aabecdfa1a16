"""One file per task: its loss, its evaluation, its predictions; the model is an argument."""
