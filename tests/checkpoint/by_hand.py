"""Run a hand-written training loop that resumes when it is run again after a kill."""

import torch
import torch.nn.functional as F

import ftrain
from ftrain import checkpoint, data, optim

torch.set_num_threads(1)


def model():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 10))


def loss_fn(model, batch):
    return F.cross_entropy(model(batch["image"]), batch["label"])


# The loop of ten lines that the README shows.
loader = data.Loader(data.digits(), batch_size=64, seed=0)
init_state, train_step, _ = ftrain.make_steps(model, loss_fn, optim.adamw(1e-3))

with checkpoint.Store("run") as store:
    state, where = store.load(like=init_state(seed=0), default=loader.start().to_json())
    here = data.Cursor.from_json(where)
    for batch, cursor in loader.batches(here, epochs=3 - here.epoch):
        state, metrics = train_step(state, batch)
        store.save(state, step=int(state.step), metadata=cursor.to_json())
