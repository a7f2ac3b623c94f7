"""How vLLM reads requests, refuses them and words its answers. Pure.

    routes                                the generating routes: add one here
    bodies, schema, message_schema, chat  what was sent becomes a body, or is refused at once
    validation, sampling_rules            what the engine is asked, or refuses
    generation                            what the engine makes of that
    answers, errors                       the words of answers
    adapters, model_files, openapi        what else the engine knows and says

Endpoints that generate nothing are in `live.handlers`.
"""
