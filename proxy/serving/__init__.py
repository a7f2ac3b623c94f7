"""Serving answers one request by its legs: where they go, in which order, what is tried again, and what
becomes of the blocks they leave behind.

    director      the life of one request: its decision, its legs, and whether it is tried again
    exchange      a client's request as a `Call`, and its answer as a `Reply`
    placed        one attempt: where it goes, and all that is claimed for it until it is over
    ends          gives back once, whatever fails, all that was taken
    legs          one upstream request each: prefill, decode, and what both do
    attempts      what was tried so far, and what that allows
    retry_budget  how many retries may run at one moment
    custody       the states of a hold, the blocks of legs that go in turn; `custody_at_once`: of a crossing
    handover      carries out a connector's plan: legs in turn, legs at once, and the release of holds
    learning      compares what an engine reports of a prompt with what kvproxy predicted
    unserved      the error of a request that no engine answered
    healing       prefill legs that ask the engine to report its cached blocks again
    lists         a list of prompts, each with legs of its own
    waits         the times that are not settings: how long a request waits for engines and retry budget
    ports         what serving needs of others: client, tokenizer, watch

When a client leaves, `handover` ends its legs, gives the hold up, and has its blocks released.
"""
