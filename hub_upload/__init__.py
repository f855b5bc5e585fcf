"""To the Hub: stage.py makes a folder ready, verify.py proves it in strange surroundings, push.py uploads it."""
