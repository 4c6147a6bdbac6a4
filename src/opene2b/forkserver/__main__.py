from opene2b.forkserver.main import main

main()
