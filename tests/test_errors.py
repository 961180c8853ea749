"""The errors of arguments: one sentence, whose parts are fields."""

import pickle

import pytest

import jaxae
from jaxae._checks import ArgumentError, DataError, argument_list, lookup

OPTIONS = {"patience": "--patience", "monitor": "--monitor", "hparams['l1']": "--l1"}


def test_an_argument_error_has_a_field_for_each_part_of_its_sentence():
    with pytest.raises(jaxae.ArgumentError) as info:
        jaxae.Autoencoder(input_dim=3, latent_dim=0)
    error = info.value
    assert isinstance(error, ValueError)
    assert str(error) == "latent_dim must be an integer of at least 1, got 0."
    assert error.argument == "latent_dim" and error.found == "0"
    assert error.problem == "must be an integer of at least 1" and error.advice == ""


@pytest.mark.parametrize(
    ("error", "sentence", "rendered"),
    [
        (
            ArgumentError(
                "patience",
                "waits for train/los",
                advice="set {monitor}='train/loss', or leave {k} out",
            ),
            "patience waits for train/los; set monitor='train/loss', or leave k out.",
            "--patience waits for train/los; set --monitor='train/loss', or leave k "
            "out.",
        ),
        (
            ArgumentError("hparams['l1']", "must be positive", "-1.0"),
            "hparams['l1'] must be positive, got -1.0.",
            "--l1 must be positive, got -1.0.",
        ),
        (
            ArgumentError("x", "is not {hparams['l1']}", "{monitor}: {'patience': 1}"),
            "x is not hparams['l1'], got {monitor}: {'patience': 1}.",
            "x is not --l1, got {monitor}: {'patience': 1}.",
        ),
        (
            ArgumentError("x", f"lacks {argument_list(['patience', 'k'])}"),
            "x lacks patience, k.",
            "x lacks --patience, k.",
        ),
    ],
)
def test_names_of_arguments_are_rendered_and_values_are_not(error, sentence, rendered):
    assert str(error) == sentence
    assert error.render(OPTIONS) == rendered
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == sentence and again.render(OPTIONS) == rendered


def test_an_unknown_name_is_found_with_the_known_ones_and_a_guess():
    with pytest.raises(ArgumentError) as info:
        lookup("activation", {"relu": 1, "tanh": 2}, "rleu")
    assert info.value.found == "'rleu' (did you mean 'relu'?)"
    assert info.value.problem == "must be one of relu, tanh"


def test_a_data_error_names_the_row_of_all_the_data():
    error = DataError("data", "must be finite", "nan", (3, 2), num_others=4)
    assert str(error) == "data must be finite, found nan at row 3, column 2 and 4 more."
    moved = error.in_rows("inputs", 50, " in rows 50 to 59")
    sentence = (
        "inputs must be finite, found nan at row 53, column 2 and 4 more in rows 50 to "
        "59."
    )
    assert str(moved) == str(pickle.loads(pickle.dumps(moved))) == sentence
    assert moved.argument == "inputs"
    one = DataError("data", "must be finite", "inf", (2,))
    assert str(one) == "data must be finite, found inf at column 2."
