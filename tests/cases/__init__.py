"""Bad inputs: for each kind a table of name -> what makes it and what its error says.

``tests/test_cases.py`` takes each through every door of the toolkit that such an input comes in by. A new fault that
someone's file shows is a new row here.
"""
