"""A transformer as text encoder through task, tables and environments."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import maw_gym  # noqa: F401 - registers the environments
from maw_gym.encoders.embedder import encoder_shape, untrained_embedder
from maw_gym.encoders.files import save_embedder
from maw_gym.encoders.text import load_text_encoder
from maw_gym.errors import InputError
from maw_gym.tables.task import RetrievalTask, load_task


def test_the_table_is_the_evaluation_and_pictures_show_the_models_tokens(tiny, tiny_transformer):
    text = load_text_encoder(str(tiny_transformer))
    embedder = untrained_embedder(tiny.doc_texts, encoder_shape(text, depths=4), text)
    with torch.no_grad():
        embedder.maw.value_proj.weight.mul_(-40)  # so that the depths rank differently
    task = RetrievalTask(tiny, embedder)
    table = task.table("train")
    assert table.block("attention").shape == (len(table), 64 * 3)
    assert table.block("content").shape == (len(table), 24)
    assert not (table.ndcg[:, 0] == table.ndcg[:, 3]).all()
    for depth in range(4):
        evaluation, _ = task.evaluate("train", torch.full((len(table),), depth))
        assert np.abs(evaluation.per_query["nDCG@10"] - table.ndcg[:, depth]).max() <= 1e-6
    weights, tokens = task.attention(tiny.splits["test"].ids[0], 2)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert weights.shape == (3, len(tokens), len(tokens))
    assert np.abs(weights.sum(-1) - 1).max() < 1e-5


def test_tasks_and_environments_stand_on_a_folder(home, tiny_folder, tiny_transformer):
    name, text = str(tiny_folder), str(tiny_transformer)
    task = load_task(name, "untrained", "cpu", text_encoder=text)
    assert task.embedder.maw.settings == encoder_shape(task.embedder.text)
    assert load_task(name, "untrained", "cpu", text_encoder=text) is task
    assert load_task(name, "untrained", "cpu") is not task
    settings = {"dataset": name, "device": "cpu", "split": "test", "text_encoder": text}
    env = gym.make("MAWDepth-v0", render_mode="ansi", **settings)
    assert env.reset(seed=0)[0].shape == (64 * 3,)
    assert env.step(5)[2]
    assert "[CLS]" in env.render()
    envs = gym.make_vec("MAWDepth-v0", num_envs=2, **settings)
    assert envs.reset(seed=0)[0].shape == (2, 64 * 3)
    with pytest.raises(InputError, match=r"^text encoder './nowhere' is no folder; give "):
        gym.make("MAWDepth-v0", dataset=name, text_encoder="./nowhere")


def test_the_file_of_an_encoder_has_its_own(home, tiny_folder, tiny_transformer, tmp_path):
    text, path = load_text_encoder(str(tiny_transformer)), tmp_path / "encoder.safetensors"
    save_embedder(path, untrained_embedder([], None, text), {})
    task = load_task(str(tiny_folder), str(path), "cpu")
    assert task.embedder.text.name == text.name
    with pytest.raises(InputError, match=r"has a text encoder of its own; leave out 'minilm'$"):
        load_task(str(tiny_folder), str(path), "cpu", text_encoder="minilm")
