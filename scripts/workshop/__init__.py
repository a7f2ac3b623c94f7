"""What the scripts, the tests and the proofs share: engines and kvproxy as processes of their own. It imports
no test.
"""
