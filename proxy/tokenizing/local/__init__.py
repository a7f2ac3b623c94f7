"""A model's own tokenizer and chat template in this process: the tokens an engine would see, or no answer."""
