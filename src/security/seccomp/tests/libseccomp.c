/* What libseccomp makes of a profile, for the comparison in libseccomp.rs.
 *
 * Without arguments: reads a profile from stdin, as lines of numbers and names, and writes the BPF
 * program to stdout.
 *     default ACTION
 *     arch TOKEN                       (the native one is left out unless it is named)
 *     rule ACTION NAME [INDEX OPERATOR VALUE VALUE_TWO]...
 * With architecture tokens as arguments: writes a line "TOKEN NUMBER" for each call it knows. */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void check(int result, const char *step)
{
	if (result < 0 && result != -EEXIST) {
		fprintf(stderr, "%s: %s\n", step, strerror(-result));
		exit(1);
	}
}

static uint64_t number(char *word)
{
	if (!word) {
		fprintf(stderr, "a number is missing\n");
		exit(1);
	}
	return strtoull(word, NULL, 0);
}

static void add_rule(scmp_filter_ctx filter)
{
	uint32_t action = number(strtok(NULL, " \n"));
	int call = seccomp_syscall_resolve_name(strtok(NULL, " \n"));
	struct scmp_arg_cmp args[6];
	unsigned int count = 0;
	char *word;

	while ((word = strtok(NULL, " \n")) && count < 6) {
		args[count].arg = number(word);
		args[count].op = number(strtok(NULL, " \n"));
		args[count].datum_a = number(strtok(NULL, " \n"));
		args[count].datum_b = number(strtok(NULL, " \n"));
		count++;
	}
	if (call != __NR_SCMP_ERROR)
		check(seccomp_rule_add_array(filter, action, call, count, args), "add a rule");
}

static int compile(void)
{
	scmp_filter_ctx filter = NULL;
	char line[4096];
	int native_named = 0, others = 0;

	while (fgets(line, sizeof(line), stdin)) {
		char *word = strtok(line, " \n");

		if (!strcmp(word, "default")) {
			filter = seccomp_init(number(strtok(NULL, " \n")));
		} else if (!strcmp(word, "arch")) {
			uint32_t arch = number(strtok(NULL, " \n"));

			native_named |= arch == seccomp_arch_native();
			others |= arch != seccomp_arch_native();
			check(seccomp_arch_add(filter, arch), "add an architecture");
		} else {
			if (others && !native_named) {
				check(seccomp_arch_remove(filter, seccomp_arch_native()),
				      "leave the native architecture out");
				native_named = 1;
			}
			add_rule(filter);
		}
	}
	check(seccomp_export_bpf(filter, STDOUT_FILENO), "write the program");
	return 0;
}

int main(int argc, char **argv)
{
	/* What it can express must not depend on this kernel. */
	seccomp_api_set(6);
	if (argc == 1)
		return compile();
	for (int i = 1; i < argc; i++) {
		uint32_t arch = number(argv[i]);
		int first = arch == SCMP_ARCH_X32 ? 0x40000000 : 0;

		for (int call = first; call < first + 0x100000; call++) {
			char *name = seccomp_syscall_resolve_num_arch(arch, call);

			if (name)
				printf("%u %u\n", arch, call);
			free(name);
			/* The numbers private to arm start there. */
			if (call == first + 1023)
				call = first + 0xf0000;
		}
	}
	return 0;
}
