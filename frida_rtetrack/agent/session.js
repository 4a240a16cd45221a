/* One session in this process: its memory, its code, its hooks, from start to the last of them gone. */

const MARK = { PAUSED: 2, RESUMED: 3, EAL_CLEANUP_ENDED: 7, EAL_INIT_STARTED: 9, EAL_INIT_ENDED: 10 };
const SOCKET_ANY = -1;
const HEADER_HEAD = 384; // struct session_header, native/session.h
const EVENT_BYTES = 32;
const RING_AHEAD_BYTES = 2 << 20;
const RING_STEP_BYTES = 1 << 20;
const RING_LOOK_MS = 5;
const EXEC_WAIT_S = 6; // EXEC_LIMIT_NS in native/execs.c
const UNLOAD_GRACE_S = 0.2; // for a thread between a hook's last instruction and the program's code
const MOVED_ON_NS = 1000000; // of its own time: then a thread has come out of a call that was not hooked yet
const MOVE_ON_LIMIT_NS = 2000000000;

// Touches the ring's pages before the program's threads come to them, and not much sooner: a program that allocates little
// is not made larger by a ring that it does not fill.
class RingPages {
  // `bytes`: the header and the ring.
  constructor(memory, bytes) {
    Object.assign(this, { memory, bytes, touched: 0, head: memory.add(HEADER_HEAD) });
    this.touch();
    this.timer = setInterval(() => this.touch(), RING_LOOK_MS);
  }

  touch() {
    const used = this.head.readU64().toNumber() * EVENT_BYTES;
    while (this.touched < this.bytes && this.touched < used + RING_AHEAD_BYTES) {
      const step = Math.min(RING_STEP_BYTES, this.bytes - this.touched);
      system.madvise(this.memory.add(this.touched), step, MADV_POPULATE_WRITE); // refused by old kernels: only slower
      this.touched += step;
    }
    if (this.touched >= this.bytes) this.stop();
  }

  stop() {
    clearInterval(this.timer);
  }
}

class Session {
  constructor(fd, options, source, compiled) {
    this.code = new Code(source, compiled); // first: if it throws, nothing has been done yet
    this.options = options;
    this.gate = new Gate(options.gate ?? null);
    this.pid = system.getpid().value;
    this.endProbes = [];
    this.redirected = []; // names of functions in which a forked child passes Frida by
    this.hooks = []; // {function, module, address, how}
    this.entries = new Entries();
    this.redirects = new Redirects();
    this.modules = new Map(); // base -> record in the module table
    this.modulesToHook = null; // while those that are there already are being told of
    // What a child must not have, unless it is to be followed.
    this.ours = options.followFork ? [MADV_DONTDUMP] : [MADV_DONTFORK, MADV_DONTDUMP];
    this.memory = map(options.sessionBytes, MAP_SHARED, fd, this.ours);
    closeDescriptor();
    this.ring = new RingPages(this.memory, options.populateBytes);
    this.tablesBytes = this.code.native('agent_tables_bytes', 'uint64', [])().toNumber();
    this.tables = map(this.tablesBytes, MAP_PRIVATE_ANONYMOUS, -1, this.ours);
    const start = this.code.native('agent_start', 'int', ['pointer', 'uint64', 'pointer', 'uint32', 'uint32', 'uint32']);
    this.process = start(this.memory, options.sessionBytes, this.tables, options.maxFrames, +options.allocationBacktrace,
      +options.freeBacktrace);
    if (this.process < 0) throw new Error('the session memory is not of this version');
    this.mark = this.code.native('agent_mark', 'int', ['uint32', 'uint64']);
    this.switchTo = this.code.native('agent_switch', 'void', ['int']);
    this.moduleLoaded = this.code.native('agent_module_loaded', 'pointer', ['uint64', 'uint64', 'pointer']);
    this.moduleUnloaded = this.code.native('agent_module_unloaded', 'void', ['pointer']);
    this.record = this.code.native('agent_record', 'void', ['int']);
    this.followChildren = this.code.native('agent_follow', 'void', ['int']);
    this.holdEnd = this.code.native('agent_hold_end', 'void', ['int']);
    this.functions = new DpdkFunctions(this.code, options.symbols, options.library);
    this.heap = new DpdkHeap(this.code, this.functions, options.verify);
    this.engine = options.engine === 'native' ? new NativeEngine(this) : new PortableEngine(this);
  }

  start() {
    this.switchTo(1);
    this.record(1);
    if (this.options.followFork) {
      this.followChildren(1);
      this.startExecProbe();
    }
    this.startSigmark();
    if (this.options.holdEnd) this.holdEnd(1);
    if (this.options.verify || this.options.holdEnd) this.watchEnd();
    this.holdForks();
    this.followModules();
  }

  // Those that are there come first, one by one. Nothing is hooked until the tables of all are known: stacks go through any.
  followModules() {
    const there = this.modulesToHook = [];
    this.observer = Process.attachModuleObserver({
      onAdded: module => this.onModuleAdded(module),
      onRemoved: module => this.onModuleRemoved(module),
    });
    this.modulesToHook = null;
    there.forEach(module => this.tryModule(module, () => this.hookModule(module)));
  }

  startExecProbe() {
    const execve = Module.getGlobalExportByName('execve');
    this.entries.save(execve);
    if (this.redirects.tryReplace(execve, this.code.address('hook_execve'), this.code.state('execs'))) return;
    this.execProbe = Interceptor.attach(execve, this.code.address('exec_probe'));
  }

  // The program's own end: a jump where that can be, since a listener's bookkeeping may keep a forked child waiting.
  watchEnd() {
    ['exit', '_exit', 'abort'].forEach((name, i) => {
      const address = Module.getGlobalExportByName(name);
      const original = this.code.state('exits').add(8 * i);
      this.entries.save(address);
      if (this.redirects.tryReplace(address, this.code.address('hook_' + name), original)) return;
      this.endProbes.push(Interceptor.attach(address, this.code.address('end_probe')));
    });
  }

  startSigmark() {
    if (!this.redirectSigaction()) {
      this.sigactionListener = Interceptor.attach(Module.getGlobalExportByName('sigaction'),
        { onEnter: this.code.address('sigaction_enter'), onLeave: this.code.address('sigaction_leave') });
    }
    Interceptor.flush();
    this.sigmarkState = this.code.native('sigmark_start', 'int', ['int'])(this.options.signal);
    this.code.native('faults_start', 'void', [])();
  }

  // While our calls into DPDK are under way (native/snapshot.c).
  holdForks() {
    const fork = Module.getGlobalExportByName('fork');
    this.entries.save(fork);
    if (this.redirects.tryReplace(fork, this.code.address('hook_fork'), this.code.state('forking'))) this.redirected.push('fork');
  }

  // Past Frida's own hooks in a forked child (native/sigactions.c). Returns whether sigaction is.
  redirectSigaction() {
    const names = ['sigaction', 'signal', '_dl_debug_state'];
    const addresses = names.map(name => Module.findGlobalExportByName(name));
    if (Process.arch !== 'x64') {
      this.entries.save(addresses[0]);
      return false;
    }
    this.code.native('sigactions_start', 'void', [])();
    names.forEach((name, i) => {
      if (addresses[i] === null) return;
      this.entries.save(addresses[i]);
      if (this.redirects.tryReplace(addresses[i], this.code.address('hook_' + name), this.code.state('sigactions').add(8 * i)))
        this.redirected.push(name);
    });
    return this.redirected.includes('sigaction');
  }

  onModuleAdded(module) {
    this.tryModule(module, () => {
      this.modules.set(module.base.toString(),
        this.moduleLoaded(uint64(module.base.toString()), module.size, Memory.allocUtf8String(module.path)));
      this.engine.onModuleAdded(module);
      if (this.modulesToHook !== null) this.modulesToHook.push(module);
      else this.hookModule(module, true);
    });
  }

  tryModule(module, work) {
    try {
      work();
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

  hookModule(module, loadedSince = false) {
    const known = this.functions.wrong.length;
    const here = this.functions.areIn(module);
    this.functions.wrong.slice(known).forEach(text => send({ type: 'wrong symbol', text }));
    if (!here) return;
    const own = this.heap.claim();
    if (this.options.ownHeap && !own) {
      send({ type: 'another heap', module: module.name });
      return;
    }
    if (loadedSince) keepLoaded(module);
    const { functions, optimized } = this.functions.toBeHooked(module);
    functions.forEach(([, address]) => this.entries.save(address)); // all before any is hooked: they may be close together
    const hooked = [];
    for (const [name, address] of functions) {
      const how = this.engine.hook(name, address, optimized);
      if (how !== null) hooked.push({ function: name, module: module.path, address: address.toString(), how });
    }
    Interceptor.flush();
    this.redirects.flush();
    this.heap.find(module);
    if (this.options.followFork) this.followChildren(1); // with what is known now
    this.hooks.push(...hooked);
    send({ type: 'hooked', engine: this.engine.name, hooks: hooked });
  }

  state() {
    return { process: this.process, engine: this.engine.name, builtBy: this.code.builtBy, hooks: this.hooks, sigmark: this.sigmarkState,
      redirected: this.redirected };
  }

  // Waits until nobody is in the middle any more of what our hooks do not see, or of what they change. Returns for how many not.
  moveOn() {
    return this.code.native('threads_move_on', 'uint64', ['uint64', 'uint64'])(MOVED_ON_NS, MOVE_ON_LIMIT_NS).toNumber();
  }

  pause() {
    this.record(0);
    return this.mark(MARK.PAUSED, 0);
  }

  resume() {
    this.record(1);
    return this.mark(MARK.RESUMED, 0);
  }

  // Nothing of ours is freed before every hook is gone and every thread has left it.
  stop(reason) {
    if (system.getpid().value !== this.pid) return; // a forked child: nothing of this is mapped here
    if (reason === 'exit' && this.options.verify) this.heap.snapshot(FINAL_BASELINE);
    this.followChildren(0);
    this.holdEnd(0);
    this.ring.stop();
    this.observer?.detach();
    // At one moment for all functions: what is allocated unseen must not be seen to be freed.
    this.record(0);
    this.engine.silence();
    this.entries.restore();
    this.engine.unhook();
    this.code.native('faults_stop', 'void', [])();
    this.code.native('sigmark_stop', 'void', [])();
    this.sigactionListener?.detach();
    this.execProbe?.detach();
    this.endProbes.forEach(probe => probe.detach());
    Interceptor.flush();
    if (!this.hostReads) this.code.native('agent_abandon', 'void', [])();
    this.waitForThreads();
    this.switchTo(0);
    this.engine.stop();
    this.code.native('agent_stop', 'void', [])();
    this.code.dispose();
    this.redirects.dispose();
    unmap(this.memory, this.options.sessionBytes);
    unmap(this.tables, this.tablesBytes);
    if (!this.hostReads && reason !== 'exit') this.gate.close(); // Frida unloads the agent next, and the host is gone
  }

  waitForThreads() {
    const threadsInside = this.code.native('agent_threads_inside', 'int', []);
    const signalsInside = this.code.native('sigmark_inside', 'int', []);
    const threadsEnding = this.code.native('agent_threads_ending', 'int', []);
    const forksInside = this.code.native('forks_inside', 'int', []);
    const inside = () => threadsInside() + signalsInside() + threadsEnding() + forksInside() + this.engine.threadsInside();
    const execsInside = this.code.native('execs_inside', 'int', []);
    while (inside() > 0) Thread.sleep(0.01);
    for (let waited = 0; execsInside() > 0 && waited < EXEC_WAIT_S; waited += 0.01) Thread.sleep(0.01); // one may have been killed in it
    Thread.sleep(UNLOAD_GRACE_S);
    this.moveOn();
    while (inside() > 0) Thread.sleep(0.01);
  }
}
