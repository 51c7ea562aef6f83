"""llama.cpp's server, out of the wheel `xllamacpp`, which has it as a library: what `llama-server` does with the same flags.

python llamacpp_serve.py FILE.gguf PORT NAME=VALUE...      names as in its CommonParams: n_parallel=4, kv_unified=1
"""

import signal
import sys

import xllamacpp


def main() -> None:
    file, port, *settings = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.use_jinja = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    for name, _, value in (setting.partition("=") for setting in settings):
        known = getattr(params, name)
        setattr(params, name, {value} if isinstance(known, set) else type(known)(int(value)))
    server = xllamacpp.Server(params)
    print("listening at", server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
