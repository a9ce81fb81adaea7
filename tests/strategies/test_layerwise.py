import pytest

from tests.strategies.setups import prepare


def test_rates_fall_by_layer_decay_from_the_head_down() -> None:
    setup = prepare("layerwise", "bert", freeze_depth=0, layer_decay=0.5)
    factors = setup.strategy.rate_factors(setup.module, setup.layers, setup.hp)
    assert factors["classifier.weight"] == factors["bert.pooler.dense.weight"] == 1.0
    assert factors["bert.encoder.layer.2.output.dense.weight"] == 0.5
    assert factors["bert.encoder.layer.1.output.dense.weight"] == 0.25
    assert factors["bert.encoder.layer.0.output.dense.weight"] == 0.125
    assert factors["bert.embeddings.word_embeddings.weight"] == 0.0625


@pytest.mark.parametrize("freeze_depth", [1, 2])
def test_freezing_changes_no_other_rate(freeze_depth: int) -> None:
    free = prepare("layerwise", "gpt2", freeze_depth=0)
    frozen = prepare("layerwise", "gpt2", freeze_depth=freeze_depth)
    rates = frozen.strategy.rate_factors(frozen.module, frozen.layers, frozen.hp)
    assert rates.items() < free.strategy.rate_factors(free.module, free.layers, free.hp).items()


def test_no_decay_is_full_fine_tuning() -> None:
    setup = prepare("layerwise", "llama", freeze_depth=0, layer_decay=1.0)
    assert set(setup.strategy.rate_factors(setup.module, setup.layers, setup.hp).values()) == {1.0}
    assert len(setup.trainable()) == len(list(setup.base.parameters()))
