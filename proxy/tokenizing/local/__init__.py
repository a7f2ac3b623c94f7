"""A model's own tokenizer and chat template in this process: the tokens that an engine would see, or no
answer.
"""
