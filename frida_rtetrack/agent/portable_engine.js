/*
 * The portable engine: Interceptor.attach with JavaScript callbacks and Frida's own unwinder. Slow, exact, for every
 * architecture that Frida knows; and the yardstick that the native unwinder is tested against.
 */

const EVENT = { ALLOCATED: 1, FREED: 2, RESIZE_STARTED: 3, RESIZE_ENDED: 4, ALLOCATION_FAILED: 5 };
const STACK_END = { MAX_FRAMES: 1, UNKNOWN_END: 5 };
const PORTABLE_FRAMES = 16; // GUM_MAX_BACKTRACE_DEPTH

// struct rte_memzone (rte_memzone.h): name[32], iova, addr, len
const MEMZONE_ADDRESS = 40;
const MEMZONE_LENGTH = 48;

class PortableEngine {
  constructor(session) {
    this.name = 'portable';
    this.code = session.code;
    this.redirects = session.redirects;
    this.maxFrames = Math.min(session.options.maxFrames, PORTABLE_FRAMES);
    this.allocationBacktrace = session.options.allocationBacktrace;
    this.freeBacktrace = session.options.freeBacktrace;
    // Cooperative (the default): a thread that waits for room in the ring lets go of the JavaScript lock.
    this.append = session.code.native('portable_append', 'int',
      ['uint32', 'uint32', 'int32', 'uint64', 'uint64', 'pointer', 'pointer', 'pointer', 'uint32', 'uint32']);
    this.mark = session.mark;
    this.noteRegions = session.code.native('agent_note_regions', 'void', []);
    this.blockOfElement = session.code.native('block_of_element', 'uint64', ['pointer']);
    this.sizeOfBlock = session.code.native('size_of_block', 'uint64', ['pointer']);
    this.zoneAddress = session.code.native('zone_address', 'uint64', ['pointer']);
    this.cleanupStarted = session.code.native('cleanup_started', 'void', []);
    this.memzonePrefix = Memory.allocUtf8String('memzone:');
    this.outermost = new Map(); // thread id -> stack pointer of the outermost hooked call it is inside of
    this.scratch = new Map(); // thread id -> room for its frames
    this.listeners = [];
    this.inside = 0; // threads in a callback; like all of this object it changes under the JavaScript lock only
    this.stopped = false;
  }

  hook(name, address) {
    const spec = FUNCTIONS[name];
    const { onEnter, onLeave } = PORTABLE_CALLBACKS[spec.does](this, spec);
    const listener = { onEnter: this.guarded(onEnter), onLeave: this.guarded(onLeave) };
    this.listeners.push(Interceptor.attach(this.pastChildren(address), listener));
    return 'attach';
  }

  // Where to listen to the function at `address` so that a forked child does not come there: in the child nobody lets go
  // of a JavaScript lock that another thread had at the fork, and a callback would wait for it for ever.
  pastChildren(address) {
    try {
      return this.redirects.gate(address, this.code.state('agent'), this.code.state('fork_follow'));
    } catch (_) {
      return address;
    }
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

  recordAllocation(invocation, spec, address, size) {
    const { socket, type, stack, prefix } = invocation;
    const kind = address.isNull() ? EVENT.ALLOCATION_FAILED : EVENT.ALLOCATED;
    this.record(kind, spec, socket, address, size, prefix, type, stack);
  }

  record(kind, spec, socket, address, size, prefix, type, stack) {
    this.append(kind, spec.api, socket, uint64(address.toString()), uint64(size), prefix, type, stack.frames, stack.count, stack.end ?? 0);
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

const socketOf = (spec, args) => (spec.socket === undefined ? SOCKET_ANY : args[spec.socket].toInt32());

// What to do at a call and at its return, by what the function does (FUNCTIONS). `this` is Frida's invocation.
const PORTABLE_CALLBACKS = {
  allocate(engine, spec) {
    return {
      onEnter(args) {
        this.outer = engine.enter(this);
        if (!this.outer) return;
        this.size = spec.size(args).toString();
        this.socket = socketOf(spec, args);
        this.type = args[spec.type];
        this.prefix = NULL;
        this.stack = engine.backtrace(this, engine.allocationBacktrace);
      },
      onLeave(address) {
        if (!this.outer) return;
        engine.recordAllocation(this, spec, address, this.size);
        engine.leave(this);
      },
    };
  },

  reserve(engine, spec) {
    return {
      onEnter(args) {
        this.outer = engine.enter(this);
        if (!this.outer) return;
        this.size = args[1].toString();
        this.socket = socketOf(spec, args);
        this.type = args[0];
        this.prefix = engine.memzonePrefix;
        this.stack = engine.backtrace(this, engine.allocationBacktrace);
      },
      onLeave(zone) {
        if (!this.outer) return;
        if (zone.isNull()) engine.recordAllocation(this, spec, NULL, this.size);
        else engine.recordAllocation(this, spec, zone.add(MEMZONE_ADDRESS).readPointer(), zone.add(MEMZONE_LENGTH).readU64().toString());
        engine.leave(this);
      },
    };
  },

  resize(engine, spec) {
    return {
      onEnter(args) {
        this.outer = engine.enter(this);
        if (!this.outer) return;
        this.size = spec.size(args).toString();
        this.socket = socketOf(spec, args);
        this.type = NULL;
        this.prefix = NULL;
        this.old = args[0];
        this.stack = engine.backtrace(this, engine.allocationBacktrace);
        if (!this.old.isNull())
          engine.record(EVENT.RESIZE_STARTED, spec, this.socket, this.old, this.size, NULL, NULL, this.stack);
      },
      onLeave(address) {
        if (!this.outer) return;
        if (this.old.isNull()) engine.recordAllocation(this, spec, address, this.size);
        else engine.record(EVENT.RESIZE_ENDED, spec, this.socket, address, this.size, NULL, NULL, this.stack);
        engine.leave(this);
      },
    };
  },

  free(engine, spec) {
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
  },

  'heap free'(engine, spec) {
    return PORTABLE_CALLBACKS.free(engine, spec);
  },

  unreserve(engine, spec) {
    return PORTABLE_CALLBACKS.free(engine, spec);
  },

  'heap allocate'(engine, spec) {
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
        engine.recordAllocation(this, spec, address, address.isNull() ? '0' : engine.sizeOfBlock(address).toString());
        engine.leave(this);
      },
    };
  },

  cleanup(engine, spec) {
    return {
      onEnter() {
        engine.cleanupStarted();
      },
      onLeave() {
        engine.mark(MARK.EAL_CLEANUP_ENDED, 0);
      },
    };
  },

  init(engine, spec) {
    return {
      onEnter() {
        engine.mark(MARK.EAL_INIT_STARTED, 0);
      },
      onLeave() {
        engine.noteRegions();
        engine.mark(MARK.EAL_INIT_ENDED, 0);
      },
    };
  },
};
