'use strict';
/*
 * Runs in the target: finds DPDK's allocation functions in whatever module defines them, hooks them, keeps the module
 * table, answers the host's calls, and undoes everything in dispose(). What happens on the program's own threads is the
 * C in native/ (engine "native"), or the callbacks of PortableEngine below.
 */

const EVENT = { ALLOCATED: 1, FREED: 2, RESIZE_STARTED: 3, RESIZE_ENDED: 4, ALLOCATION_FAILED: 5 };
const MARK = { PAUSED: 2, RESUMED: 3, EAL_CLEANUP_ENDED: 7, EAL_INIT_STARTED: 9, EAL_INIT_ENDED: 10 };
const FINAL_BASELINE = uint64(1).shl(40);
const STACK_END = { MAX_FRAMES: 1, UNKNOWN_END: 5 };
const SOCKET_ANY = -1;
const PORTABLE_FRAMES = 16; // GUM_MAX_BACKTRACE_DEPTH
const FIRST_EXTERNAL_SOCKET = 256; // EXTERNAL_HEAP_MIN_SOCKET_ID, malloc_heap.h
const NEAR_JUMP_BYTES = 5;
const ENTRY_BYTES = 16; // the longest redirect that Frida writes on x86-64 and arm64
const UNHOOK_LOOK_S = 0.01;
const UNHOOK_GRACE_S = 0.1; // for a thread between a hooked function's entry and the hook
const UNLOAD_GRACE_S = 0.2; // for a thread between a hook's last instruction and the program's code

// Every entry point that allocates, resizes or frees (DPDK lib/eal/include/rte_malloc.h, rte_memzone.h): what it does,
// its number in enum event_api, and where its arguments are.
const FUNCTIONS = {
  rte_malloc: { does: 'allocate', api: 1, type: 0, size: a => a[1] },
  rte_malloc_socket: { does: 'allocate', api: 2, type: 0, size: a => a[1], socket: 3 },
  rte_zmalloc: { does: 'allocate', api: 3, type: 0, size: a => a[1] },
  rte_zmalloc_socket: { does: 'allocate', api: 4, type: 0, size: a => a[1], socket: 3 },
  rte_calloc: { does: 'allocate', api: 5, type: 0, size: a => product(a[1], a[2]) },
  rte_calloc_socket: { does: 'allocate', api: 6, type: 0, size: a => product(a[1], a[2]), socket: 4 },
  rte_realloc: { does: 'resize', api: 7, size: a => a[1] },
  rte_realloc_socket: { does: 'resize', api: 8, size: a => a[1], socket: 3 },
  rte_free: { does: 'free', api: 9 },
  rte_free_sensitive: { does: 'free', api: 10 },
  rte_memzone_reserve: { does: 'reserve', api: 11, socket: 2 },
  rte_memzone_reserve_aligned: { does: 'reserve', api: 12, socket: 2 },
  rte_memzone_reserve_bounded: { does: 'reserve', api: 13, socket: 2 },
  rte_memzone_free: { does: 'unreserve', api: 14 },
  malloc_heap_alloc: { does: 'heap allocate', api: 15 },
  malloc_heap_free: { does: 'heap free', api: 16 },
  rte_eal_cleanup: { does: 'cleanup' },
  rte_eal_init: { does: 'init' },
};
const ALLOCATING = ['rte_malloc_socket', 'rte_malloc', 'rte_zmalloc_socket', 'rte_zmalloc']; // DPDK has rte_free and one of these

// Where a whole program was optimized at once (LTO), calls of the functions above are inlined or go to clones of them. What
// all of them come down to is hooked as well then, under whatever name the compiler gave it. Everything is listened to
// there, which leaves all registers as they were: callers know which ones the function itself leaves alone (-fipa-ra).
const BOTTOM = ['malloc_heap_alloc', 'malloc_heap_free'];
const CORE = /^(rte_(malloc|zmalloc|calloc|realloc)(_socket)?|rte_free|rte_memzone_reserve(_aligned|_bounded)?|rte_eal_(init|cleanup)|malloc_heap_(alloc|free))(\.|$)/;
const CLONE = /^(\w+)\.(constprop|isra|part|lto_priv|llvm)\b(?!.*\.cold)/;

// struct rte_memzone (rte_memzone.h): name[32], iova, addr, len
const MEMZONE_ADDRESS = 40;
const MEMZONE_LENGTH = 48;

function product(a, b) {
  return uint64(a.toString()).toNumber() * uint64(b.toString()).toNumber();
}

function libc(name, result, args) {
  const address = Module.findGlobalExportByName(name);
  if (address === null) throw new Error(`the program's C library does not define ${name}`);
  return new SystemFunction(address, result, args);
}

const PROT_READ_WRITE = 3, PROT_READ_EXEC = 5, PROT_READ_WRITE_EXEC = 7, MAP_SHARED = 1, MAP_PRIVATE_ANONYMOUS = 0x22;
const MADV_DONTFORK = 10, MADV_DONTDUMP = 16, MADV_WIPEONFORK = 18, MADV_POPULATE_WRITE = 23;
const MAP_FAILED = ptr(-1);

const system = {
  mmap: libc('mmap', 'pointer', ['pointer', 'size_t', 'int', 'int', 'int', 'int64']),
  mprotect: libc('mprotect', 'int', ['pointer', 'size_t', 'int']),
  munlock: libc('munlock', 'int', ['pointer', 'size_t']),
  munmap: libc('munmap', 'int', ['pointer', 'size_t']),
  madvise: libc('madvise', 'int', ['pointer', 'size_t', 'int']),
  close: libc('close', 'int', ['int']),
  getpid: libc('getpid', 'int', []),
};

// Maps memory of our own. PROT_NONE first, then unlock, then open up: under mlockall(MCL_FUTURE), which testpmd does,
// a plain mmap would make the kernel fill all of it at once.
function map(bytes, flags, fd, advices) {
  const { value: address, errno } = system.mmap(NULL, bytes, 0, flags, fd, 0);
  if (address.equals(MAP_FAILED)) throw new Error(`cannot map ${bytes} bytes in the program (errno ${errno})`);
  system.munlock(address, bytes);
  system.mprotect(address, bytes, PROT_READ_WRITE);
  for (const advice of advices) system.madvise(address, bytes, advice);
  return address;
}

// The first bytes of every hooked function. Frida frees a trampoline as soon as it has taken the hook out, and counts only
// the threads that are beyond the trampoline's first instructions: one that is held up right there then runs into freed
// memory. So the functions get their own bytes back first, and Frida takes its hooks out once everybody has moved on.
class Entries {
  constructor() {
    this.bytes = new Map(); // address -> its first 16 bytes, before the hook
  }

  save(address) {
    this.bytes.set(address.toString(), address.readByteArray(ENTRY_BYTES));
  }

  forget(module) {
    for (const address of this.bytes.keys()) {
      if (ptr(address).compare(module.base) >= 0 && ptr(address).compare(module.base.add(module.size)) < 0)
        this.bytes.delete(address);
    }
  }

  // Until it has lasted: Frida was seen to write its jumps anew, from a program's thread that left a JavaScript callback.
  restore() {
    if (Process.arch !== 'x64') return; // elsewhere the instruction cache would have to be told
    const deadline = Date.now() + 2000;
    for (let quiet = 0; quiet < UNHOOK_GRACE_S && Date.now() < deadline; quiet += UNHOOK_LOOK_S) {
      if (this.restoreOnce()) quiet = 0;
      Thread.sleep(UNHOOK_LOOK_S);
    }
  }

  // Returns how many were not as they should be.
  restoreOnce() {
    let changed = 0;
    for (const [address, bytes] of this.bytes) {
      try {
        changed += this.restoreEntry(ptr(address), Array.from(new BigUint64Array(bytes), word => uint64(word.toString())));
      } catch (_) {
        this.bytes.delete(address); // its module is gone
      }
    }
    return changed;
  }

  restoreEntry(entry, words) {
    if (words.every((word, i) => entry.add(8 * i).readU64().equals(word))) return 0;
    return writeCode(entry, words); // if not, Frida's own way remains
  }
}

// Writes 64-bit words (the last one first) over code at `address`, each in one store. Returns 1, or 0 where it is not allowed.
function writeCode(address, words) {
  const page = address.and(ptr(Process.pageSize - 1).not()), length = address.add(8 * words.length).sub(page).toUInt32();
  if (system.mprotect(page, length, PROT_READ_WRITE_EXEC).value !== 0) return 0;
  for (let i = words.length - 1; i >= 0; i--) address.add(8 * i).writeU64(words[i]);
  system.mprotect(page, length, PROT_READ_EXEC);
  return 1;
}

// ---- the engines ----

// Interceptor.attach with JavaScript callbacks and Frida's own unwinder: slow, exact, for every architecture.
class PortableEngine {
  constructor(session) {
    this.name = 'portable';
    this.maxFrames = Math.min(session.options.maxFrames, PORTABLE_FRAMES);
    this.allocationBacktrace = session.options.allocationBacktrace;
    this.freeBacktrace = session.options.freeBacktrace;
    // Cooperative (the default): a thread that waits for room in the ring lets go of the JavaScript lock.
    this.append = session.native('portable_append', 'int',
      ['uint32', 'uint32', 'int32', 'uint64', 'uint64', 'pointer', 'pointer', 'pointer', 'uint32', 'uint32']);
    this.mark = session.mark;
    this.noteRegions = session.native('agent_note_regions', 'void', []);
    this.blockOfElement = session.native('block_of_element', 'uint64', ['pointer']);
    this.sizeOfBlock = session.native('size_of_block', 'uint64', ['pointer']);
    this.zoneAddress = session.native('zone_address', 'uint64', ['pointer']);
    this.cleanupStarted = session.native('cleanup_started', 'void', []);
    this.memzonePrefix = Memory.allocUtf8String('memzone:');
    this.outermost = new Map(); // thread id -> stack pointer of the outermost hooked call it is inside of
    this.scratch = new Map(); // thread id -> room for its frames
    this.listeners = [];
    this.inside = 0; // threads in a callback; like all of this object it changes under the JavaScript lock only
    this.stopped = false;
  }

  hook(name, address) {
    const { onEnter, onLeave } = this.callbacks(FUNCTIONS[name]);
    this.listeners.push(Interceptor.attach(address, { onEnter: this.guarded(onEnter), onLeave: this.guarded(onLeave) }));
    return 'attach';
  }

  // A thread may wait for the JavaScript lock, or lend it while it calls into native/, when we stop: those inside are
  // waited for, and a callback that comes later must not touch what is gone.
  guarded(callback) {
    const engine = this;
    return function (argument) {
      if (engine.stopped) return;
      engine.inside++;
      try {
        callback.call(this, argument);
      } finally {
        engine.inside--;
      }
    };
  }

  // What the call does itself is the outermost hooked function's business; those that it calls stay silent.
  enter(invocation) {
    const sp = invocation.context.sp;
    const outer = this.outermost.get(invocation.threadId);
    // Equal after a tail call. A frame above the recorded one: that one was left by longjmp or an exception.
    if (outer !== undefined && sp.compare(outer) <= 0) return false;
    this.outermost.set(invocation.threadId, sp);
    return true;
  }

  leave(invocation) {
    this.outermost.delete(invocation.threadId);
  }

  // The call's return addresses, innermost first. At a function's first instruction Frida's unwinder looks up the
  // function before (pc - 1), so it is started in the caller, where the return address points to.
  backtrace(invocation, wanted) {
    if (!wanted) return { frames: NULL, count: 0 };
    const context = invocation.context;
    let addresses = [];
    if (Process.arch === 'x64') {
      const { pc, sp } = context;
      const caller = sp.readPointer();
      context.pc = caller;
      context.sp = sp.add(8);
      try {
        addresses = Thread.backtrace(context, Backtracer.ACCURATE);
      } finally {
        context.pc = pc;
        context.sp = sp;
      }
      addresses[0] = caller;
    } else {
      const { pc, lr } = context;
      context.pc = lr;
      try {
        addresses = Thread.backtrace(context, Backtracer.ACCURATE);
      } finally {
        context.pc = pc;
      }
      addresses[0] = lr;
    }
    const cut = addresses.length >= this.maxFrames;
    if (cut) addresses.length = this.maxFrames;
    let frames = this.scratch.get(invocation.threadId);
    if (frames === undefined) {
      frames = Memory.alloc(PORTABLE_FRAMES * 8);
      this.scratch.set(invocation.threadId, frames);
    }
    addresses.forEach((address, i) => frames.add(8 * i).writeU64(uint64(address.toString())));
    return { frames, count: addresses.length, end: cut ? STACK_END.MAX_FRAMES : STACK_END.UNKNOWN_END };
  }

  record(kind, spec, socket, address, size, prefix, type, stack) {
    this.append(kind, spec.api, socket, uint64(address.toString()), uint64(size), prefix, type, stack.frames, stack.count, stack.end ?? 0);
  }

  callbacks(spec) {
    const engine = this;
    const socketOf = args => (spec.socket === undefined ? SOCKET_ANY : args[spec.socket].toInt32());

    function noteAllocation(invocation, address, size) {
      const { socket, type, stack, prefix } = invocation;
      const kind = address.isNull() ? EVENT.ALLOCATION_FAILED : EVENT.ALLOCATED;
      engine.record(kind, spec, socket, address, size, prefix, type, stack);
    }

    switch (spec.does) {
      case 'allocate':
        return {
          onEnter(args) {
            this.outer = engine.enter(this);
            if (!this.outer) return;
            this.size = spec.size(args).toString();
            this.socket = socketOf(args);
            this.type = args[spec.type];
            this.prefix = NULL;
            this.stack = engine.backtrace(this, engine.allocationBacktrace);
          },
          onLeave(address) {
            if (!this.outer) return;
            noteAllocation(this, address, this.size);
            engine.leave(this);
          },
        };
      case 'reserve':
        return {
          onEnter(args) {
            this.outer = engine.enter(this);
            if (!this.outer) return;
            this.size = args[1].toString();
            this.socket = socketOf(args);
            this.type = args[0];
            this.prefix = engine.memzonePrefix;
            this.stack = engine.backtrace(this, engine.allocationBacktrace);
          },
          onLeave(zone) {
            if (!this.outer) return;
            if (zone.isNull()) noteAllocation(this, NULL, this.size);
            else noteAllocation(this, zone.add(MEMZONE_ADDRESS).readPointer(), zone.add(MEMZONE_LENGTH).readU64().toString());
            engine.leave(this);
          },
        };
      case 'resize':
        return {
          onEnter(args) {
            this.outer = engine.enter(this);
            if (!this.outer) return;
            this.size = spec.size(args).toString();
            this.socket = socketOf(args);
            this.type = NULL;
            this.prefix = NULL;
            this.old = args[0];
            this.stack = engine.backtrace(this, engine.allocationBacktrace);
            if (!this.old.isNull())
              engine.record(EVENT.RESIZE_STARTED, spec, this.socket, this.old, this.size, NULL, NULL, this.stack);
          },
          onLeave(address) {
            if (!this.outer) return;
            if (this.old.isNull()) noteAllocation(this, address, this.size);
            else engine.record(EVENT.RESIZE_ENDED, spec, this.socket, address, this.size, NULL, NULL, this.stack);
            engine.leave(this);
          },
        };
      case 'free':
      case 'heap free':
      case 'unreserve':
        return {
          onEnter(args) {
            this.outer = engine.enter(this);
            if (!this.outer) return;
            let address = args[0];
            if (spec.does === 'heap free') address = ptr(engine.blockOfElement(address).toString());
            if (spec.does === 'unreserve' && !address.isNull()) address = ptr(engine.zoneAddress(address).toString());
            if (address.isNull()) return;
            const stack = engine.backtrace(this, engine.freeBacktrace);
            engine.record(EVENT.FREED, spec, SOCKET_ANY, address, '0', NULL, NULL, stack);
          },
          onLeave() {
            if (this.outer) engine.leave(this);
          },
        };
      case 'heap allocate':
        return {
          onEnter() {
            this.outer = engine.enter(this);
            if (!this.outer) return;
            this.socket = SOCKET_ANY;
            this.type = NULL;
            this.prefix = NULL;
            this.stack = engine.backtrace(this, engine.allocationBacktrace);
          },
          onLeave(address) {
            if (!this.outer) return;
            noteAllocation(this, address, address.isNull() ? '0' : engine.sizeOfBlock(address).toString());
            engine.leave(this);
          },
        };
      case 'cleanup':
        return {
          onEnter() {
            engine.cleanupStarted();
          },
          onLeave() {
            engine.mark(MARK.EAL_CLEANUP_ENDED, 0);
          },
        };
      case 'init':
        return {
          onEnter() {
            engine.mark(MARK.EAL_INIT_STARTED, 0);
          },
          onLeave() {
            engine.noteRegions();
            engine.mark(MARK.EAL_INIT_ENDED, 0);
          },
        };
    }
  }

  silence() {
    this.stopped = true; // at one moment for all functions: none is recorded without its counterpart
  }

  unhook() {
    this.listeners.forEach(listener => listener.detach());
  }

  onModuleAdded() {}

  onModuleRemoved() {}

  threadsInside() {
    return this.inside;
  }

  stop() {}
}

// Interceptor.replaceFast with the C of native/hooks.c and its own unwinder (x86-64 Linux).
class NativeEngine {
  constructor(session) {
    this.name = 'native';
    this.session = session;
    this.replaced = []; // addresses
    this.listeners = [];
    this.stubs = []; // keeps the near jumps' memory alive
    this.addModule = session.native('unwind_add_module', 'int', ['pointer', 'uint64', 'uint64']);
    this.removeModule = session.native('unwind_remove_module', 'void', ['pointer', 'uint64']);
    this.unwinderBytes = session.native('unwind_state_bytes', 'uint64', [])().toNumber();
    this.unwinder = map(this.unwinderBytes, MAP_PRIVATE_ANONYMOUS, -1, session.ours);
    session.native('agent_use_unwinder', 'void', ['pointer'])(this.unwinder);
    session.native('hooks_start', 'void', [])();
    this.uncounted = session.native('hooks_uncounted', 'uint64', []);
  }

  onModuleAdded(module) {
    this.addModule(this.unwinder, uint64(module.base.toString()), module.size);
  }

  onModuleRemoved(module) {
    this.removeModule(this.unwinder, uint64(module.base.toString()));
  }

  // A redirect of 5 bytes first: it overwrites the fewest instructions that a thread may be in the middle of, and fits
  // where the ordinary one of 16 does not (rte_free is 10 bytes long).
  hook(name, address, optimized) {
    const { api } = FUNCTIONS[name];
    const replacement = this.session.code['hook_' + name];
    const setOriginal = original => this.session.originals.add(8 * ORIGINALS.indexOf(name)).writePointer(original);
    const throughFrida = how => {
      setOriginal(Interceptor.replaceFast(how, replacement)); // takes effect at the next flush
      this.replaced.push(address);
    };
    const ways = [
      ['near', () => this.redirect(address, replacement, setOriginal)],
      ['near', () => throughFrida(this.nearRedirect(address, replacement))],
      ['far', () => throughFrida(address)],
    ];
    for (const [how, replace] of ways.filter(([how]) => !optimized && this.session.options.hookWays.includes(how))) {
      try {
        replace();
      } catch (_) {
        continue;
      }
      return how;
    }
    if (name === 'rte_eal_cleanup') { // its return must stay untouched: what it frees is unwound through it
      this.listeners.push(Interceptor.attach(address, { onEnter: this.session.code.cleanup_started }));
      return 'attach';
    }
    return api === undefined ? null : this.listen(address, api);
  }

  listen(address, api) {
    this.listeners.push(Interceptor.attach(address,
      { onEnter: this.session.code.listener_enter, onLeave: this.session.code.listener_leave }, ptr(api)));
    return 'attach';
  }

  // A jump of 5 bytes, written in one store: no thread ever runs into half of it, as it may where Frida writes it. The
  // instructions that it overwrites are run elsewhere, before a jump to those that follow them: that is the original.
  // Session.entries takes it back. Throws where the function does not allow it.
  redirect(target, replacement, setOriginal) {
    const word = target.and(ptr(7).not()), offset = target.sub(word).toUInt32();
    if (offset + NEAR_JUMP_BYTES > 8) throw new Error('the jump would lie across two words');
    const stub = Memory.alloc(Process.pageSize, { near: target, maxDistance: 0x70000000 });
    this.stubs.push(stub);
    const original = stub.add(64);
    let whole = false; // what is thrown inside of patchCode gets lost
    Memory.patchCode(stub, 256, code => {
      const jump = new X86Writer(code, { pc: stub });
      jump.putJmpAddress(replacement);
      jump.flush();
      const moved = new X86Writer(code.add(64), { pc: original });
      const relocator = new X86Relocator(target, moved);
      let bytes = 0;
      while (bytes < NEAR_JUMP_BYTES) {
        const read = relocator.readOne();
        if (read === 0) return;
        bytes = read;
      }
      relocator.writeAll();
      if (!relocator.eoi) moved.putJmpAddress(target.add(bytes));
      moved.flush();
      whole = true;
    });
    if (!whole) throw new Error('the function is too short');
    setOriginal(original);
    const bytes = new Uint8Array(word.readByteArray(8));
    bytes[offset] = 0xe9;
    new DataView(bytes.buffer).setInt32(offset + 1, stub.sub(target.add(NEAR_JUMP_BYTES)).toInt32(), true);
    if (!writeCode(word, [uint64(new BigUint64Array(bytes.buffer)[0].toString())])) throw new Error('the code cannot be written');
  }

  nearRedirect(target, replacement) {
    const stub = Memory.alloc(Process.pageSize, { near: target, maxDistance: 0x70000000 });
    this.stubs.push(stub);
    return {
      target,
      redirectSpaceHint: 5,
      writeRedirect({ writer }) {
        Memory.patchCode(stub, 16, code => {
          const jump = new X86Writer(code, { pc: stub });
          jump.putJmpAddress(replacement);
          jump.flush();
        });
        writer.putJmpAddress(stub);
      },
    };
  }

  silence() {}

  unhook() {
    this.listeners.forEach(listener => listener.detach());
    this.replaced.forEach(address => Interceptor.revert(address));
  }

  threadsInside() {
    return this.uncounted().toNumber();
  }

  stop() {
    this.session.native('hooks_stop', 'void', [])();
    system.munmap(this.unwinder, this.unwinderBytes);
  }
}

// The order of struct originals in native/hooks.c.
const ORIGINALS = [
  'rte_malloc', 'rte_malloc_socket', 'rte_zmalloc', 'rte_zmalloc_socket', 'rte_calloc', 'rte_calloc_socket', 'rte_realloc',
  'rte_realloc_socket', 'rte_free', 'rte_free_sensitive', 'rte_memzone_reserve', 'rte_memzone_reserve_aligned',
  'rte_memzone_reserve_bounded', 'rte_memzone_free', 'rte_eal_cleanup', 'rte_eal_init',
];

// ---- one session ----

class Session {
  constructor(fd, options, source) {
    this.options = options;
    this.pid = system.getpid().value;
    this.hooks = []; // {function, module, address, how}
    this.entries = new Entries();
    this.modules = new Map(); // base -> record in the module table
    // What a child must not have, unless it is to be followed.
    this.ours = options.followFork ? [MADV_DONTDUMP] : [MADV_DONTFORK, MADV_DONTDUMP];
    this.memory = map(options.sessionBytes, MAP_SHARED, fd, this.ours);
    system.close(fd);
    if (options.populateBytes > 0)
      system.madvise(this.memory, options.populateBytes, MADV_POPULATE_WRITE); // refused by old kernels: only slower
    this.agent = map(Process.pageSize, MAP_PRIVATE_ANONYMOUS, -1, [MADV_WIPEONFORK, MADV_DONTDUMP]);
    this.sigmark = map(Process.pageSize, MAP_PRIVATE_ANONYMOUS, -1, [MADV_DONTDUMP]);
    this.faults = map(Process.pageSize, MAP_PRIVATE_ANONYMOUS, -1, [MADV_DONTDUMP]);
    this.follow = map(Process.pageSize, MAP_PRIVATE_ANONYMOUS, -1, [MADV_DONTDUMP]);
    this.originals = map(Process.pageSize, MAP_PRIVATE_ANONYMOUS, -1, [MADV_DONTDUMP]);
    this.code = new CModule(source, {
      agent: this.agent,
      sigmark: this.sigmark,
      faults: this.faults,
      originals: this.originals,
      fork_follow: this.follow,
      syscall: Module.getGlobalExportByName('syscall'),
      sigaction: Module.getGlobalExportByName('sigaction'),
      fopencookie: Module.getGlobalExportByName('fopencookie'),
      fclose: Module.getGlobalExportByName('fclose'),
      setvbuf: Module.getGlobalExportByName('setvbuf'),
      __errno_location: Module.getGlobalExportByName('__errno_location'),
    });
    this.tablesBytes = this.native('agent_tables_bytes', 'uint64', [])().toNumber();
    this.tables = map(this.tablesBytes, MAP_PRIVATE_ANONYMOUS, -1, this.ours);
    const start = this.native('agent_start', 'int', ['pointer', 'pointer', 'uint32', 'uint32', 'uint32']);
    this.process = start(this.memory, this.tables, options.maxFrames, +options.allocationBacktrace, +options.freeBacktrace);
    if (this.process < 0) throw new Error('the session memory is not of this version');
    this.mark = this.native('agent_mark', 'int', ['uint32', 'uint64']);
    this.switchTo = this.native('agent_switch', 'void', ['int']);
    this.names = new Map(); // function name -> C string
    this.moduleExport = this.native('module_export', 'uint64', ['uint64', 'uint64', 'pointer']);
    this.moduleLoaded = this.native('agent_module_loaded', 'pointer', ['uint64', 'uint64', 'pointer']);
    this.moduleUnloaded = this.native('agent_module_unloaded', 'void', ['pointer']);
    this.record = this.native('agent_record', 'void', ['int']);
    this.followChildren = this.native('agent_follow', 'void', ['int']);
    this.engine = options.engine === 'native' ? new NativeEngine(this) : new PortableEngine(this);
  }

  native(name, result, args) {
    return new NativeFunction(this.code[name], result, args);
  }

  start() {
    this.switchTo(1);
    this.record(1);
    if (this.options.followFork) {
      this.followChildren(1);
      this.startExecProbe();
    }
    this.startSigmark();
    this.observer = Process.attachModuleObserver({
      onAdded: module => this.onModuleAdded(module),
      onRemoved: module => this.onModuleRemoved(module),
    });
  }

  startExecProbe() {
    const execve = Module.getGlobalExportByName('execve');
    this.entries.save(execve);
    this.execProbe = Interceptor.attach(execve, this.code.exec_probe);
  }

  startSigmark() {
    const { signal } = this.options;
    const sigaction = Module.getGlobalExportByName('sigaction');
    this.entries.save(sigaction);
    this.sigactionListener = Interceptor.attach(sigaction,
      { onEnter: this.code.sigaction_enter, onLeave: this.code.sigaction_leave });
    Interceptor.flush();
    this.sigmarkState = this.native('sigmark_start', 'int', ['int'])(signal);
    this.native('faults_start', 'void', [])();
  }

  onModuleAdded(module) {
    try {
      this.modules.set(module.base.toString(),
        this.moduleLoaded(uint64(module.base.toString()), module.size, Memory.allocUtf8String(module.path)));
      this.engine.onModuleAdded(module);
      this.hookModule(module);
    } catch (error) {
      send({ type: 'error', text: `${module.name}: ${error.message}` });
    }
  }

  onModuleRemoved(module) {
    const record = this.modules.get(module.base.toString());
    this.modules.delete(module.base.toString());
    this.moduleUnloaded(record ?? NULL);
    this.engine.onModuleRemoved(module);
    this.entries.forget(module);
    this.hooks = this.hooks.filter(hook => hook.module !== module.path);
  }

  // The function's address if this module itself defines it. What the host found in a debug file, or was told by --symbol,
  // comes first. DPDK's own shared libraries are spared the slow look into .symtab. No dlsym here, neither ours nor
  // Frida's: see native/exports.c.
  find(module, name) {
    const given = (this.options.symbols[module.path] ?? this.options.symbols[module.name])?.[name];
    if (given !== undefined) return module.base.add(given);
    const exported = this.moduleExport(uint64(module.base.toString()), module.size, this.nameOf(name));
    if (!exported.equals(0)) return ptr(exported.toString());
    if (module.name.startsWith('librte_')) return null;
    const address = module.findSymbolByName(name);
    const inside = address !== null && address.compare(module.base) >= 0 && address.compare(module.base.add(module.size)) < 0;
    return inside ? address : null;
  }

  // [name, address or null] of each function to be hooked; `optimized`: together with its callers.
  functionsOf(module) {
    const exact = Object.keys(FUNCTIONS).filter(name => !BOTTOM.includes(name)).map(name => [name, this.find(module, name)]);
    if (module.name.startsWith('librte_')) return { functions: exact, optimized: false };
    const symbols = module.enumerateSymbols().filter(({ name, type }) => type === 'function' && CORE.test(name));
    if (symbols.every(({ name, isGlobal }) => isGlobal && !CLONE.test(name) || BOTTOM.includes(name)))
      return { functions: exact, optimized: false };
    const clones = name => symbols.filter(symbol => symbol.name === name || symbol.name.match(CLONE)?.[1] === name);
    const bottom = BOTTOM.flatMap(name => clones(name).map(({ address }) => [name, address]));
    for (const name of ['rte_eal_init', 'rte_eal_cleanup']) exact.push([name, clones(name)[0]?.address ?? null]);
    if (new Set(bottom.map(([name]) => name)).size < BOTTOM.length)
      send({ type: 'error', text: `${module.name}: DPDK's functions were inlined (LTO), and malloc_heap_alloc and malloc_heap_free `
        + 'are not there to be hooked instead: calls will be missed.' });
    return { functions: [...exact, ...bottom], optimized: true };
  }

  nameOf(name) {
    if (!this.names.has(name)) this.names.set(name, Memory.allocUtf8String(name));
    return this.names.get(name);
  }

  hookModule(module) {
    const { library } = this.options;
    if (library !== null && !matchesLibrary(module, library)) return;
    if (this.find(module, 'rte_free') === null || !ALLOCATING.some(name => this.find(module, name) !== null)) return;
    const own = this.native('agent_own_heap', 'int', [])();
    if (this.options.ownHeap && !own) {
      send({ type: 'another heap', module: module.name });
      return;
    }
    if (this.observer !== undefined) keepLoaded(module);
    const hooked = [];
    const taken = new Set();
    const { functions: found, optimized } = this.functionsOf(module);
    const functions = found.filter(([, address]) => address !== null); // absent in this version
    functions.forEach(([, address]) => this.entries.save(address)); // all before any is hooked: they may be close together
    for (const [name, address] of functions) {
      if (taken.has(address.toString())) continue; // two names of one function
      taken.add(address.toString());
      const how = this.engine.hook(name, address, optimized);
      if (how !== null) hooked.push({ function: name, module: module.path, address: address.toString(), how });
    }
    Interceptor.flush();
    this.dpdk = module;
    this.useHeap();
    if (this.options.followFork) this.followChildren(1); // with what is known now
    this.hooks.push(...hooked);
    send({ type: 'hooked', engine: this.engine.name, hooks: hooked });
  }

  // Lets the C side reach the heap of the DPDK that was found.
  useHeap() {
    const dump = this.find(this.dpdk, 'rte_malloc_dump_heaps');
    const walk = this.find(this.dpdk, 'rte_memzone_walk');
    this.dumpHeaps = dump;
    const regions = this.find(this.dpdk, 'rte_memseg_list_walk');
    this.native('agent_use_heap', 'void', ['pointer', 'pointer', 'pointer', 'int'])(
      dump ?? NULL, walk ?? NULL, regions ?? NULL, +this.options.verify);
    this.noteRegionsOfHeap = this.native('agent_note_regions', 'void', []);
    this.takeSnapshot = this.native('snapshot_take', 'int64', ['pointer', 'uint64', 'int']);
    this.heapEnter = this.native('heap_enter', 'int', []);
    this.heapLeave = this.native('heap_leave', 'void', []);
  }

  // Calls into DPDK while its heap is there; `otherwise` if it is gone.
  withHeap(ask, otherwise) {
    if (this.heapEnter() === 0) return otherwise;
    try {
      return ask();
    } finally {
      this.heapLeave();
    }
  }

  // Has DPDK's own list of busy blocks written into the event stream; returns how many, -1 without memory, -2 if the
  // heap is gone, or null if DPDK cannot be asked.
  snapshot(number) {
    if (!this.dumpHeaps) return null;
    return this.withHeap(() => this.takeSnapshot(this.dumpHeaps, number, +this.hasOneHeap()).toNumber(), -2);
  }

  hasOneHeap() {
    const sockets = this.find(this.dpdk, 'rte_socket_count');
    const isExternal = this.find(this.dpdk, 'rte_malloc_heap_socket_is_external');
    if (sockets === null || isExternal === null) return false;
    if (new NativeFunction(sockets, 'uint', [])() !== 1) return false;
    const external = new NativeFunction(isExternal, 'int', ['int']);
    for (let socket = FIRST_EXTERNAL_SOCKET; socket < FIRST_EXTERNAL_SOCKET + 64; socket++)
      if (external(socket) === 1) return false;
    return true;
  }

  state() {
    return { process: this.process, engine: this.engine.name, hooks: this.hooks, sigmark: this.sigmarkState };
  }

  // Nothing of ours is freed before every hook is gone and every thread has left it.
  stop(reason) {
    if (system.getpid().value !== this.pid) return; // a forked child: nothing of this is mapped here
    if (reason === 'exit' && this.options.verify) this.snapshot(FINAL_BASELINE);
    this.followChildren(0);
    this.observer?.detach();
    // At one moment for all functions: what is allocated unseen must not be seen to be freed.
    this.record(0);
    this.engine.silence();
    this.entries.restore();
    this.engine.unhook();
    this.native('faults_stop', 'void', [])();
    this.native('sigmark_stop', 'void', [])();
    this.sigactionListener?.detach();
    this.execProbe?.detach();
    Interceptor.flush();
    if (!this.hostReads) this.native('agent_abandon', 'void', [])();
    const threadsInside = this.native('agent_threads_inside', 'int', []);
    const signalsInside = this.native('sigmark_inside', 'int', []);
    const inside = () => threadsInside() + signalsInside() + this.engine.threadsInside();
    while (inside() > 0) Thread.sleep(0.01);
    Thread.sleep(UNLOAD_GRACE_S);
    while (inside() > 0) Thread.sleep(0.01);
    this.switchTo(0);
    this.engine.stop();
    this.native('agent_stop', 'void', [])();
    this.code.dispose();
    system.munmap(this.memory, this.options.sessionBytes);
    system.munmap(this.tables, this.tablesBytes);
    for (const page of [this.agent, this.sigmark, this.faults, this.originals, this.follow]) system.munmap(page, Process.pageSize);
  }
}

// A hook cannot be taken out of memory that is gone: a library that is hooked after the start is not unloaded any more.
function keepLoaded(module) {
  const LAZY_NOLOAD_NODELETE = 0x1005;
  libc('dlopen', 'pointer', ['pointer', 'int'])(Memory.allocUtf8String(module.path), LAZY_NOLOAD_NODELETE);
}

function matchesLibrary(module, library) {
  return module.name === library || module.path === library || module.name.startsWith(library + '.');
}

// ---- what the host can call ----

let session = null;

rpc.exports = {
  // Makes the memfd that the host then sizes and fills in; returns its descriptor in this process.
  createSession(name) {
    const { value: fd, errno } = libc('memfd_create', 'int', ['pointer', 'uint'])(Memory.allocUtf8String(name), 1);
    if (fd < 0) throw new Error(`memfd_create failed (errno ${errno})`);
    return fd;
  },

  // Opens the memory of a session that another process has begun; returns its descriptor in this process.
  joinSession(path) {
    const { value: fd, errno } = libc('open', 'int', ['pointer', 'int'])(Memory.allocUtf8String(path), 0x80002); // O_RDWR | O_CLOEXEC
    if (fd < 0) throw new Error(`the session's memory, ${path}, cannot be opened here (errno ${errno}): another container or user?`);
    return fd;
  },

  start(fd, options, source) {
    session = new Session(fd, options, source);
    session.start();
    return session.state();
  },

  state() {
    return session.state();
  },

  pause() {
    session.record(0);
    return session.mark(MARK.PAUSED, 0);
  },

  resume() {
    session.record(1);
    return session.mark(MARK.RESUMED, 0);
  },

  snapshot(number) {
    return session.snapshot(number);
  },

  // Has the addresses that DPDK reserved for its heap written into the event stream.
  noteRegions() {
    session.withHeap(() => session.noteRegionsOfHeap());
  },

  // The host is about to unload us and reads on until we are gone: nothing needs to be dropped.
  leave() {
    session.hostReads = true;
  },

  moduleNames() {
    return Process.enumerateModules().map(module => module.path);
  },

  dispose(reason) {
    const ending = session;
    session = null;
    ending?.stop(reason);
  },
};
