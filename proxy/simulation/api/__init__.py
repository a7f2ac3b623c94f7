"""Pure: how vLLM reads requests, refuses them and words its answers.

    routes                                the generating routes: add one here
    bodies, schema, message_schema, chat  what was sent becomes a body, or is refused at once
    validation, sampling_rules            what the engine is asked, or refuses
    generation                            what it makes of that
    answers, errors                       its words
    adapters, model_files, openapi        what else it knows and tells

Endpoints that generate nothing are in `live.handlers`.
"""
