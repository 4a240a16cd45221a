'use strict';
/*
 * Runs in the target: finds DPDK's allocation functions in whatever module defines them, hooks them, keeps the module
 * table, answers the host's calls, and undoes everything in dispose(). What happens on the program's own threads is the
 * C in native/ (engine "native"), or the callbacks of agent/portable_engine.js.
 *
 * One script: the host puts the files below in the place of their lines.
 */
//#include "agent/system.js"
//#include "agent/functions.js"
//#include "agent/entries.js"
//#include "agent/redirects.js"
//#include "agent/code.js"
//#include "agent/heap.js"
//#include "agent/gate.js"
//#include "agent/portable_engine.js"
//#include "agent/native_engine.js"
//#include "agent/session.js"

// ---- what the host can call ----

let session = null;

function end(reason) {
  const ending = session;
  session = null;
  closeDescriptor();
  ending?.stop(reason);
}

rpc.exports = {
  // Makes the memfd that the host then sizes and fills in; returns its descriptor in this process.
  createSession: createSessionMemory,

  // Opens the memory of a session that another process has begun; returns its descriptor in this process.
  joinSession: openSessionMemory,

  // Begins to track. `compiled`: the engine as an ELF shared object, if the host has one for this machine.
  start(fd, options, source, compiled) {
    session = new Session(fd, options, source, compiled ?? null);
    session.start();
    return session.state();
  },

  state: () => session.state(),
  moveOn: () => session.moveOn(),
  pause: () => session.pause(),
  resume: () => session.resume(),

  // Has DPDK's busy blocks, as DPDK lists them, written into the event stream.
  snapshot: number => session.heap.snapshot(number),

  // Has the addresses that DPDK reserved for its heap written into the event stream.
  noteRegions: () => session.heap.noteRegions(),

  // Lets go of pages that can be read again from their file: [start, bytes] of each mapping (target/footprint.py).
  releaseLocked: ranges => ranges.forEach(([start, bytes]) => release(ptr(start), bytes)),

  // The host is about to unload us and reads on until we are gone: nothing needs to be dropped. What goes wrong is told.
  leave() {
    if (session !== null) session.hostReads = true;
    end('leave');
  },

  // Where the program may keep pointers: [start, bytes] of each range that it can write, without Frida's own (which Frida
  // does not list), and the ranges among them that are ours.
  writable: () => ({
    ranges: Process.enumerateRanges('rw-').map(range => [range.base.toString(), range.size]),
    ours: ourMemory(),
  }),

  // The host has looked at the program's memory: it may end.
  letEnd: () => session?.holdEnd(0),

  moduleNames: () => Process.enumerateModules().map(module => module.path),

  // The script is unloaded, the host is gone, or the program exits.
  dispose: reason => end(reason),
};
