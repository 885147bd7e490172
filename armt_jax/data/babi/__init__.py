"""The bAbI tasks: the published files of all 20, worlds that generate qa1 to qa10, and solvers for these.

read_stories(find_file("tasks_1-20_v1-2/en-10k", "qa1", "test"))    # list of Story
generate("qa1", seed=0, index=17, split="train")                    # one Story; nothing need be downloaded
solve(story) == story.answer
"""

from armt_jax.data.babi.files import find_file, read_stories
from armt_jax.data.babi.solvers import answers, solve
from armt_jax.data.babi.story import TASKS, Story
from armt_jax.data.babi.worlds import GENERATED, generate, generate_story, stream

__all__ = ["GENERATED", "TASKS", "Story", "answers", "find_file", "generate", "generate_story", "read_stories", "solve", "stream"]
