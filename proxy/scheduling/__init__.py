"""Scheduling decides where the legs of a request go: which candidates there are and what each would cost.

Pure. Its files:

    question   what placement needs to know of a request
    view       the candidates for both legs, and what is known of each
    standing   which ranks there are, and which of them are as good as any, kept until the fleet changes
    outlook    what runs on a rank, in milliseconds, for a policy that reads them
    lengths    which contexts hold the request
    eligible   which candidates the policy may choose from: those that no better one replaces
    bypass     which decode instances may serve all of a request that could have two legs
    types      what a policy sees, and the contracts of policies: `LegPolicy`, and `Policy` for pairs
    policies   the policies that come with kvproxy
    routing_history  what was sent where, for a policy of engines that tell nothing of their caches
    sides      the figures that it needs of candidates, side by side
    terms      what a pair is predicted to take and to cost, in milliseconds
    legs       asks a policy that prices legs
    pairs      asks a policy that prices pairs
    goals      what a pair costs where its client has said when it wants the first token
    decision   what was decided, with every candidate and its price
    account    the same in plain values, of bounded size, for a log
    placement  turns a question into a decision, and a decision into claims

Why an instance is passed over is a word of `fleet/why.py`: `fleet` gives it where it depends on the instance
alone, `view` and `eligible` where it depends on the request.
"""
