"""Live blocks as a tree of calls: from where a thread begins down to who allocated, each with what is below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from frida_rtetrack.reports.profile import NO_STACK, Profile, Sample, frame_name


@dataclass(slots=True)
class Node:
    """A function, called the same way. Sizes in bytes."""

    name: str
    blocks: int = 0
    size_bytes: int = 0
    """Of what was allocated in it and below it."""
    own_blocks: int = 0
    own_bytes: int = 0
    """Of what was allocated in it itself."""
    children: list[Node] = field(default_factory=list)
    """Most bytes first."""


def tree(profile: Profile) -> Node:
    """The tree of `profile`; its root stands for the whole program and is no function."""
    root = Node("all")
    index: dict[tuple[int, str], Node] = {}
    for sample in profile.samples:
        node = root
        _add(node, sample)
        for name in _path(sample):
            child = index.get((id(node), name))
            if child is None:
                child = index[id(node), name] = Node(name)
                node.children.append(child)
            node = child
            _add(node, sample)
        node.own_blocks += sample.blocks
        node.own_bytes += sample.size_bytes
    waiting = [root]
    while waiting:
        node = waiting.pop()
        node.children.sort(key=lambda child: (-child.size_bytes, child.name))
        waiting.extend(node.children)
    return root


def _add(node: Node, sample: Sample) -> None:
    node.blocks += sample.blocks
    node.size_bytes += sample.size_bytes


def _path(sample: Sample) -> Sequence[str]:
    return [frame_name(frame) for frame in reversed(sample.frames)] or [NO_STACK]
