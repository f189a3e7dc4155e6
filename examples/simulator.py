"""A pole is balanced on a cart by trial: the reward comes from a simulator, step by step.

The simulator is ordinary code that the network knows nothing of; a machine or a person could stand
in its place. 32 carts run at a time with moves drawn by chance. A move is rewarded by how long its
cart kept the pole up afterwards, less the mean of all carts at that moment.
"""

import math

import torch
import torch.nn.functional as F
from common import Comparison, main, perceptron
from torch import Tensor, nn

import attrain

CARTS, STEPS = 32, 200


class CartPole:
    """Poles on carts, pushed left (0) or right (1) by 10 N every 20 ms (Barto et al., 1983)."""

    def __init__(self, carts: int) -> None:
        self.state = 0.1 * torch.rand(carts, 4) - 0.05  # place, speed, angle, turning: SI units
        self.up = torch.ones(carts, dtype=torch.bool)

    def push(self, move: Tensor) -> Tensor:
        """Move every cart [carts] for 20 ms and return which poles are up."""
        place, speed, angle, turning = self.state.unbind(1)
        sine, cosine = angle.sin(), angle.cos()
        force = (20.0 * move - 10.0 + 0.05 * turning.square() * sine) / 1.1
        turn = (9.8 * sine - cosine * force) / (0.5 * (4 / 3 - 0.1 * cosine.square() / 1.1))
        pull = force - 0.05 * turn * cosine / 1.1
        change = torch.stack([speed, pull, turning, turn], 1)
        self.state = self.state + 0.02 * change
        self.up &= (self.state[:, 0].abs() < 2.4) & (self.state[:, 2].abs() < math.radians(12))
        return self.up


@torch.no_grad()
def play(model: nn.Module, carts: int, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return states [T, carts, 4], moves [T, carts] and which poles were up before each move.

    The moves are the likeliest, or with `explore` drawn by chance.
    """
    simulator = CartPole(carts)
    states, moves, alive = [], [], []
    for _ in range(STEPS):
        states.append(simulator.state)
        alive.append(simulator.up.clone())
        out = model(simulator.state)
        move = torch.multinomial(out.softmax(1), 1)[:, 0] if explore else out.argmax(1)
        moves.append(move)
        if not simulator.push(move).any():
            break
    return torch.stack(states), torch.stack(moves), torch.stack(alive)


def advantages(alive: Tensor) -> Tensor:
    """Return [T, carts]: how much longer than the mean a pole stayed up, in standard deviations."""
    left = 0.99 ** torch.arange(len(alive))
    future = torch.stack(
        [(left[: len(alive) - t, None] * alive[t:]).sum(0) for t in range(len(alive))]
    )
    centred = (future - future.mean(1, keepdim=True)) * alive
    return centred / centred[alive].std().clamp_min(1e-6)


def run(method: str, rate: float, seed: int, validation: bool, short: bool) -> float:
    """Learn by one method; return the mean number of steps that new poles stay up, 200 at most."""
    torch.manual_seed(seed)
    model = perceptron(nn.Tanh, 4, 32, 2)
    credit = attrain.LFP(model, scale="relative")
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(0 if rate == 0 else 15 if short else 60):
        states, moves, alive = play(model, CARTS, explore=True)
        advantage = advantages(alive)[alive]
        states, moves = states[alive], moves[alive]
        optimizer.zero_grad()
        if method == "LFP":
            with credit:
                out = model(states)
            loss = attrain.rewards.softmax(out, moves, reduction="none")
        else:
            loss = F.cross_entropy(model(states), moves, reduction="none")
        (advantage * loss).mean().backward()
        optimizer.step()
    torch.manual_seed(1_000_000 + seed + 1_000 * validation)
    _, _, alive = play(model, 100, explore=method == "untrained, moves by chance")
    return float(alive.sum() / 100)


COMPARISON = Comparison(
    title="A pole on a cart, rewarded by a simulator",
    metric="steps that a pole stays up, of 200",
    run=run,
    rates={
        "untrained": None,
        "untrained, moves by chance": None,
        "REINFORCE": 0.01,
        "LFP": 0.01,
    },
    learner="LFP",
    baseline="untrained, moves by chance",
    grid=(0.003, 0.01, 0.03, 0.1),
)

if __name__ == "__main__":
    main(COMPARISON)
