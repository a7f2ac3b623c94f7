"""An engine that answers 404 for a model it lists is left out after the second time in a row."""

from proxy.fleet.denials import LEFT_OUT_S, MAX_MODELS, Denials


def test_the_second_time_in_a_row_is_believed_for_a_while_and_then_each_time() -> None:
    denials = Denials()
    assert not denials.denied("m", 0.0)
    assert not denials.left_out("m", 0.0)
    assert denials.denied("m", 5.0)
    assert denials.left_out("m", 5.0 + LEFT_OUT_S * 0.99)
    assert not denials.left_out("other", 5.0)
    assert not denials.denied("m", 5.1)  # it was on its way: told once
    assert not denials.left_out("m", 5.0 + LEFT_OUT_S)
    assert denials.denied("m", 6.0 + LEFT_OUT_S)
    assert denials.left_out("m", 6.0 + LEFT_OUT_S)


def test_an_instance_that_serves_between_has_not_denied_in_a_row() -> None:
    denials = Denials()
    denials.denied("m", 0.0)
    denials.served("m")
    assert not denials
    assert not denials.denied("m", 1.0)
    assert denials.denied("m", 2.0)
    denials.forget()
    assert not denials.left_out("m", 2.0)


def test_of_names_without_end_some_are_remembered() -> None:
    denials = Denials()
    for n in range(MAX_MODELS * 3):
        denials.denied(str(n), 0.0)
    assert denials.denied("0", 0.0)
    assert not denials.denied(str(MAX_MODELS * 2), 0.0)
