"""One rank of ``spawn_ranks``: calls the pickled function in a gloo group."""

import pickle
import sys

from torch import distributed

function, arguments = pickle.loads(bytes.fromhex(sys.argv[1]))
distributed.init_process_group("gloo")
function(distributed.get_rank(), *arguments)
distributed.destroy_process_group()
