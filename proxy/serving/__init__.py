"""A request is answered by legs: where they go, in which order, what is tried again, and what becomes of what
they hold.

    director      the life of one request: its decision, its legs, and whether it is tried again
    exchange      what comes in and what goes out: a `Call`, and the `Reply` that it becomes
    placed        one attempt: where it goes, and all that is claimed for it until it is over
    legs          one upstream request each: prefill, decode, and what both do
    attempts      what was tried so far, and what that allows
    retry_budget  how many retries may run at one moment
    custody       every state that a hold of prefilled blocks can be in, or a crossing (`custody_at_once`)
    handover      plans of connectors are carried out: legs in turn, legs at once, and holds given back
    learning      what an engine says of a prompt is compared with what was thought of it
    unserved      the error of a request that no engine had a word for
    healing       prefill legs that have an engine tell its cache anew
    lists         a list of prompts, each with legs of its own
    waits         how long all this waits where nobody has a setting for it
    ports         what is needed of others: client, tokenizer, watch

When a client leaves, `handover` ends its legs, gives the hold up, and gives its blocks back.
"""
