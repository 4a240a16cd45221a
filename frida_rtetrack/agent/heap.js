/* DPDK's heap as DPDK itself can be asked about it. Nothing here calls into DPDK once its heap is gone. */

const FIRST_EXTERNAL_SOCKET = 256; // EXTERNAL_HEAP_MIN_SOCKET_ID, malloc_heap.h
const FINAL_BASELINE = uint64(1).shl(40);
const HEAP_IS_GONE = -2;

class DpdkHeap {
  constructor(code, functions, verify) {
    this.functions = functions;
    this.verify = verify;
    this.dump = null; // rte_malloc_dump_heaps, once a module with DPDK is known
    this.use = code.native('agent_use_heap', 'void', ['pointer', 'pointer', 'pointer', 'int']);
    this.own = code.native('agent_own_heap', 'int', []);
    this.enter = code.native('heap_enter', 'int', []);
    this.leave = code.native('heap_leave', 'void', []);
    this.noteRegionsNow = code.native('agent_note_regions', 'void', []);
    this.takeSnapshot = code.native('snapshot_take', 'int64', ['pointer', 'uint64', 'int']);
  }

  // Lets the C side reach the heap of the DPDK that is in `module`.
  find(module) {
    this.module = module;
    const functions = ['rte_malloc_dump_heaps', 'rte_memzone_walk', 'rte_memseg_list_walk'].map(name => this.functions.find(module, name));
    this.dump = functions[0];
    this.use(...functions.map(address => address ?? NULL), +this.verify);
  }

  // Says that this process's heap is the one that is tracked; false if another one's is.
  claim() {
    return this.own() !== 0;
  }

  // Calls into DPDK while its heap is there; `otherwise` if it is gone.
  with(ask, otherwise) {
    if (this.enter() === 0) return otherwise;
    try {
      return ask();
    } finally {
      this.leave();
    }
  }

  // Has DPDK's own list of busy blocks written into the event stream; returns how many, -1 without memory, -2 if the
  // heap is gone, or null if DPDK cannot be asked.
  snapshot(number) {
    if (this.dump === null) return null;
    return this.with(() => this.takeSnapshot(this.dump, number, +this.isOne()).toNumber(), HEAP_IS_GONE);
  }

  // Has the addresses that DPDK reserved for its heap written into the event stream.
  noteRegions() {
    this.with(() => this.noteRegionsNow());
  }

  isOne() {
    const sockets = this.functions.find(this.module, 'rte_socket_count');
    const isExternal = this.functions.find(this.module, 'rte_malloc_heap_socket_is_external');
    if (sockets === null || isExternal === null) return false;
    if (new NativeFunction(sockets, 'uint', [])() !== 1) return false;
    const external = new NativeFunction(isExternal, 'int', ['int']);
    for (let socket = FIRST_EXTERNAL_SOCKET; socket < FIRST_EXTERNAL_SOCKET + 64; socket++)
      if (external(socket) === 1) return false;
    return true;
  }
}
