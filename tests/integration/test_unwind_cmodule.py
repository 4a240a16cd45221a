"""The unwinder as it runs in the field: compiled by TinyCC in a CModule, in a hook, in another process."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import frida
import pytest

from frida_rtetrack.target.engine import native_source

PROGRAM = Path(__file__).parents[1] / "native" / "looping.c"

HOOK = """
extern struct unwind_state state;
extern struct unwind_memo memo;
extern uint64_t result[300]; /* mode, low, high, count, end, number, then frames */
extern int probe (int value);

int
hook (int value)
{
  const uint64_t *own = (const uint64_t *) __builtin_frame_address (0);
  struct unwind_trace trace;
  if (result[0] != 0)
    {
      trace.ra = own[1];
      trace.sp = (uint64_t) (own + 2);
      trace.bp = own[0];
      trace.low = result[1];
      trace.high = result[2];
      trace.frames = result + 6;
      trace.max_frames = 256;
      unwind_walk_with_memo (&state, (result[0] & 2) ? &memo : NULL, &trace);
      result[3] = trace.count;
      result[4] = trace.end;
      result[5] = trace.number;
    }
  return probe (value);
}
"""

AGENT = """
let module = null, state = null, memo = null, result = null;
const program = Process.mainModule;
const variable = name => program.getExportByName(name);
const probe = variable('probe');

function load(source) {
  const sizes = new CModule(source);
  const bytes = name => new NativeFunction(sizes[name], 'size_t', [])().toNumber();
  state = Memory.alloc(bytes('unwind_state_bytes'));
  memo = Memory.alloc(bytes('unwind_memo_bytes'));
  result = Memory.alloc(300 * 8);
  const found = {state: bytes('unwind_state_bytes'), memo: bytes('unwind_memo_bytes')};
  sizes.dispose();
  return found;
}

rpc.exports = {
  load,
  hook(source) {
    // The hook calls the original through a stub, as its address is known only once the hook is in place.
    const stub = Memory.alloc(Process.pageSize);
    module = new CModule(source, {state, memo, result, probe: stub});
    const add = new NativeFunction(module.unwind_add_module, 'int', ['pointer', 'uint64', 'uint64']);
    const added = Process.enumerateModules().map(m => [m.name, add(state, uint64(m.base.toString()), m.size)]);
    const trampoline = Interceptor.replaceFast(probe, module.hook);
    Memory.patchCode(stub, 64, code => {
      const writer = new X86Writer(code, {pc: stub});
      writer.putJmpAddress(trampoline);
      writer.flush();
    });
    result.add(8).writeU64(variable('stack_low').readU64());
    result.add(16).writeU64(variable('stack_high').readU64());
    return added;
  },
  run(request, depth, calls, varied, mode, plain) {
    if (module !== null) {
      new NativeFunction(module.unwind_use_plain_loops, 'void', ['pointer', 'int'])(state, plain);
      result.writeU64(mode);
    }
    variable('depth').writeInt(depth);
    variable('calls').writeInt(calls);
    variable('varied').writeInt(varied);
    variable('request').writeInt(request);
    while (variable('request').readInt() !== 0)
      Thread.sleep(0.001);
    return variable('nanoseconds').readS64().toNumber();
  },
  recorded() {
    const addresses = [];
    const at = variable('recorded');
    for (let i = 0; i !== variable('recorded_count').readInt(); i++)
      addresses.push(at.add(i * 8).readPointer().toString());
    return addresses;
  },
  walked() {
    const frames = [];
    const count = result.add(24).readU64().toNumber();
    for (let i = 0; i !== count; i++)
      frames.push(result.add(48 + i * 8).readPointer().toString());
    return {end: result.add(32).readU64().toNumber(), number: result.add(40).readU64().toNumber(), frames};
  },
  portable(depth) {
    let frames = null;
    const listener = Interceptor.attach(probe, {
      onEnter() {
        const {context} = this, {pc, sp} = context;
        context.pc = this.returnAddress;
        context.sp = sp.add(8);
        frames = Thread.backtrace(context, Backtracer.ACCURATE);
        context.pc = pc;
        context.sp = sp;
        frames[0] = this.returnAddress;
      }
    });
    Interceptor.flush();
    rpc.exports.run(1, depth, 1, 0, 0, 0);
    listener.detach();
    Interceptor.flush();
    return frames.map(f => f.toString());
  },
  unhook() {
    Interceptor.revert(probe);
    Interceptor.flush();
    Thread.sleep(0.1);
  }
};
"""


def unwinder_source() -> str:
    """unwind.c as one text, as CModule takes only one."""
    return "#define RTETRACK_TARGET\n" + native_source("unwind.c")


@pytest.fixture(params=["-O2", "-O0"])
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    program = tmp_path / "looping"
    subprocess.run(
        ["gcc", "-g", request.param, "-rdynamic", "-o", program, PROGRAM, "-pthread"], check=True, capture_output=True
    )
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        session = frida.attach(process.pid)
        try:
            script = session.create_script(AGENT)
            script.load()
            yield script.exports_sync
            script.exports_sync.unhook()
            script.unload()
        finally:
            session.detach()
            time.sleep(0.1)
            process.kill()


@pytest.mark.parametrize("depth", [1, 8, 24])
def test_cmodule_walks_the_stack_that_backtrace_sees(agent: Any, depth: int) -> None:
    expected = []
    for varied in (0, 1):
        agent.run(2, depth, 4, varied, 0, 0)
        expected.append(agent.recorded()[1:])  # without probe() itself
    portable = agent.portable(depth)
    assert portable == expected[0][: len(portable)]
    assert len(portable) == min(16, len(expected[0]))
    sizes = agent.load(unwinder_source())
    agent.hook(unwinder_source() + HOOK)
    for with_memo in (0, 1):
        for plain in (0, 1):
            for varied in (0, 1, 0):
                agent.run(1, depth, 4, varied, 1 + with_memo, plain)
                walked = agent.walked()
                assert walked["frames"] == expected[varied]
                assert walked["end"] == 0
                if with_memo and not varied:
                    assert walked["number"] != 0
    assert sizes["state"] < 1 << 20


def measure(agent: Any) -> None:
    """Prints ns per walk; for a human, `python -m tests.integration.test_unwind_cmodule`."""
    calls = 50_000
    for depth in (8, 24):
        for varied in (0, 1):
            bare = min(agent.run(1, depth, calls, varied, 0, 0) for _ in range(25)) / calls
            for mode in (1, 2):
                for plain in (1, 0):
                    times = [agent.run(1, depth, calls, varied, mode, plain) / calls for _ in range(25)]
                    walked = agent.walked()
                    print(
                        f"{len(walked['frames'])} frames, {'two stacks in turn' if varied else 'one stack'}, "
                        f"{'memo' if mode == 2 else 'no memo'}, {'C' if plain else 'assembly'}: "
                        f"{min(times) - bare:.1f} ns a walk (hook alone {bare:.1f})"
                    )


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["gcc", "-O2", "-rdynamic", "-o", f"{folder}/looping", PROGRAM, "-pthread"], check=True)
        with subprocess.Popen([f"{folder}/looping"], stdout=subprocess.PIPE, text=True) as looping:
            assert looping.stdout is not None
            looping.stdout.readline()
            script_session = frida.attach(looping.pid)
            measured = script_session.create_script(AGENT)
            measured.load()
            print(measured.exports_sync.load(unwinder_source()))
            measured.exports_sync.hook(unwinder_source() + HOOK)
            measure(measured.exports_sync)
            measured.exports_sync.unhook()
            script_session.detach()
            looping.kill()
