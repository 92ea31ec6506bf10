/* Stands before libc's ptrace() in User-Mode Linux, loaded by LD_PRELOAD: for processors with AMX.
 *
 * Its kernel 6.1 hands its guests' registers over (PTRACE_SETREGSET, NT_X86_XSTATE) with as many bytes as it knows
 * processors to have: 2,696. Linux takes them whole or not at all (EFAULT), and processors with AMX have 11,008. So
 * they are completed with AMX's registers as they are at the start. A guest never has others: a program must ask for
 * AMX (arch_prctl), and the guest's kernel does not know that question. What is whole is passed on as it is.
 *
 * For x86-64. Made without libc's headers. */
typedef unsigned long word;

struct iovec { void *base; word length; };

extern long syscall(long number, ...);
extern int *__errno_location(void);

enum { SYS_PTRACE = 101 };
enum { PEEKTEXT = 1, PEEKDATA = 2, PEEKUSER = 3, GETREGSET = 0x4204, SETREGSET = 0x4205, X86_XSTATE = 0x202 };
enum { IN_USE = 64 /* the word, of XSAVE's area, that tells which parts of it hold something */, MOST = 8192 };

static word whole[MOST];
static word size; /* bytes that this processor's registers take; 0: not known yet */

long ptrace(long request, long pid, void *address, void *data)
{
    word peeked;
    struct iovec all;
    long result;

    request = (int)request; /* callers of a function with "..." leave the upper halves undefined */
    pid = (int)pid;
    if (request >= PEEKTEXT && request <= PEEKUSER) {
        result = syscall(SYS_PTRACE, request, pid, address, &peeked);
        if (result < 0)
            return -1;
        *__errno_location() = 0; /* by which the caller knows that -1 is what was there */
        return peeked;
    }
    if (request == SETREGSET && address == (void *)X86_XSTATE) {
        struct iovec *given = data;
        word i;

        if (!size) {
            all.base = whole;
            all.length = sizeof whole;
            size = syscall(SYS_PTRACE, GETREGSET, pid, address, &all) < 0 ? given->length : all.length;
            for (i = 0; i < MOST; i++)
                whole[i] = 0;
        }
        if (given->length < size) {
            for (i = 0; i < given->length / sizeof(word); i++)
                whole[i] = ((word *)given->base)[i];
            whole[IN_USE] &= ~(3ul << 17); /* AMX is 17 and 18 */
            all.base = whole;
            all.length = size;
            data = &all;
        }
    }
    return syscall(SYS_PTRACE, request, pid, address, data);
}
