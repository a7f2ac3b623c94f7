"""Pure: which candidates there are for a leg, what giving it to each costs, and where it goes.

    question   what placement has to know of a request
    view       the candidates of both legs, and what is known of each
    lengths    whose context holds the request
    eligible   which candidates are left to choose from, since none better is there
    types      what a policy sees, and the contracts of policies: `LegPolicy`, and `Policy` for pairs
    policies   those that come with kvproxy
    legs       asks a policy that prices legs
    pairs      asks a policy that prices pairs
    decision   what was decided, with every candidate and its price
    placement  from a question to a decision, and from that to claims

Why an instance is passed over is a word of `fleet.why`: what concerns the instance alone is said in `fleet`,
what concerns the request in `view` and `eligible`.
"""
