"""The evaluator behind eval.py: predictions, controls, scores, reports, comparisons and single questions."""
