"""How KV goes from a prefill to a decode engine, by a connector's plan, for requests and for the doctor.

    in_turn    the decode leg once the prefill leg is answered
    at_once    both legs at the same time
    releases   a hold that no decode leg will fetch is given back

What a prefill engine holds is fetched once, given back, or counted as stranded.
"""
