/* What the agent asks of the program's C library and of the kernel: memory of its own, and code that it may write. */

function libc(name, result, args) {
  const address = Module.findGlobalExportByName(name);
  if (address === null) throw new Error(`the program's C library does not define ${name}`);
  return new SystemFunction(address, result, args);
}

const PROT_READ_WRITE = 3, PROT_READ_EXEC = 5, PROT_READ_WRITE_EXEC = 7, MAP_SHARED = 1, MAP_PRIVATE_ANONYMOUS = 0x22;
const MADV_DONTNEED = 4, MADV_DONTFORK = 10, MADV_DONTDUMP = 16, MADV_WIPEONFORK = 18, MADV_POPULATE_WRITE = 23;
const MAP_FIXED_NOREPLACE = 0x100000; // a hint only before Linux 4.17
const MAP_FAILED = ptr(-1);
const OUT_OF_THE_WAY = ptr('0x6f0000000000'); // of the program's memory and what is near its code: a hint

const system = {
  mmap: libc('mmap', 'pointer', ['pointer', 'size_t', 'int', 'int', 'int', 'int64']),
  mprotect: libc('mprotect', 'int', ['pointer', 'size_t', 'int']),
  munlock: libc('munlock', 'int', ['pointer', 'size_t']),
  munmap: libc('munmap', 'int', ['pointer', 'size_t']),
  madvise: libc('madvise', 'int', ['pointer', 'size_t', 'int']),
  close: libc('close', 'int', ['int']),
  getpid: libc('getpid', 'int', []),
};

const mapped = new Map(); // address -> bytes

// [start, bytes] of what `map` has mapped and nobody has given back.
function ourMemory() {
  return Array.from(mapped, ([address, bytes]) => [address, bytes]);
}

// Maps memory of our own. PROT_NONE first, then unlock, then open up: under mlockall(MCL_FUTURE), which testpmd does,
// a plain mmap would make the kernel fill all of it at once.
function map(bytes, flags, fd, advices) {
  const { value: address, errno } = system.mmap(OUT_OF_THE_WAY, bytes, 0, flags, fd, 0);
  if (address.equals(MAP_FAILED)) throw new Error(`cannot map ${bytes} bytes in the program (errno ${errno})`);
  system.munlock(address, bytes);
  system.mprotect(address, bytes, PROT_READ_WRITE);
  for (const advice of advices) system.madvise(address, bytes, advice);
  mapped.set(address.toString(), bytes);
  return address;
}

// Maps memory of our own for code at `address`, and forks have it too; null where something else is, or it cannot be.
function mapAt(address, bytes) {
  const { value } = system.mmap(address, bytes, PROT_READ_EXEC, MAP_PRIVATE_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (value.equals(address)) {
    mapped.set(address.toString(), bytes);
    return address;
  }
  if (!value.equals(MAP_FAILED)) system.munmap(value, bytes);
  return null;
}

// Unlocks memory that is the same as its file, and has it read again where it is used again.
function release(address, bytes) {
  system.munlock(address, bytes);
  system.madvise(address, bytes, MADV_DONTNEED);
}

function unmap(address, bytes) {
  mapped.delete(address.toString());
  system.munmap(address, bytes);
}

// Writes 64-bit words (the last one first) over code at `address`, each in one store. Returns 1, or 0 where it is not allowed.
function writeCode(address, words) {
  return whileWritable(address, 8 * words.length, () => {
    for (let i = words.length - 1; i >= 0; i--) address.add(8 * i).writeU64(words[i]);
  });
}

// The same for code that no thread runs yet.
function writeBytes(address, bytes) {
  return whileWritable(address, bytes.length, () => address.writeByteArray(bytes));
}

function whileWritable(address, bytes, write) {
  const page = address.and(ptr(Process.pageSize - 1).not()), length = address.add(bytes).sub(page).toUInt32();
  if (system.mprotect(page, length, PROT_READ_WRITE_EXEC).value !== 0) return 0;
  write();
  system.mprotect(page, length, PROT_READ_EXEC);
  return 1;
}

function createSessionMemory(name) {
  const { value: fd, errno } = libc('memfd_create', 'int', ['pointer', 'uint'])(Memory.allocUtf8String(name), 3); // MFD_CLOEXEC | MFD_ALLOW_SEALING
  if (fd < 0) throw new Error(`memfd_create failed (errno ${errno})`);
  return openDescriptor = fd;
}

// Of a session memory that no session has taken over: its start failed, or was never asked for.
let openDescriptor = -1;

function closeDescriptor() {
  if (openDescriptor >= 0) system.close(openDescriptor);
  openDescriptor = -1;
}

function openSessionMemory(path) {
  const { value: fd, errno } = libc('open', 'int', ['pointer', 'int'])(Memory.allocUtf8String(path), 0x80002); // O_RDWR | O_CLOEXEC
  if (fd < 0) throw new Error(`the session's memory, ${path}, cannot be opened here (errno ${errno}): another container or user?`);
  return openDescriptor = fd;
}
