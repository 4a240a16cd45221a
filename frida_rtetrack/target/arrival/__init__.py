"""How we come into a running program: with a thread of our own in it, the stand-in, that Frida may do with as it likes.

Frida hijacks a thread of the program that it attaches to, wherever that stands: its vector registers are lost, and where
it is in malloc, fork or dlopen the program dies or stands still (docs/frida-notes.md). So it is given another one. A
helper process seizes a thread of the program with ptrace(2) at a moment when it is in no function of the C library but
one that only waits, borrows it for some hundred microseconds to call pthread_create, and gives it back to the bit.

    host ──starts──▶ helper ──ptrace──▶ lender (main, or a thread that waits) ──pthread_create──▶ stand-in ◀── Frida

`standin` is the host's side; the helper is `helper`, `lending`, `safepoint`, `waits`, `unwind`, `cfi`, `modules`, `ptrace`: with
nothing but the standard library, since it is started anew for each attach. x86-64 Linux only.
"""
