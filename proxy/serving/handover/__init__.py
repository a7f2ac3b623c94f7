"""Handover moves KV from a prefill to a decode engine by a connector's plan, for requests and for the doctor.

    in_turn    sends the decode leg once the prefill leg is answered
    at_once    runs both legs at the same time
    releases   gives back a hold that no decode leg will fetch

What a prefill engine holds is fetched once, released, or counted as stranded.
"""
